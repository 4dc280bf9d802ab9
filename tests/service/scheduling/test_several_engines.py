"""The scheduler in front of several engines, and the batch that is handed over early."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from tests.service.scheduling.bench import ANY, FakeEngines, run_pool, sequence
from tests.support.waiting import until
from vigor_service.engine.sequences import ScoreParts
from vigor_service.errors import EngineFailedError
from vigor_service.scheduling.engine_pool import EngineLostError
from vigor_service.scheduling.running_batches import EARLY_SECONDS
from vigor_service.scheduling.scheduler import MAX_LOST_ENGINES, Scheduler


def test_a_request_is_split_over_the_engines_that_are_free() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        sequences = [sequence(n) for n in range(9)]
        scoring = asyncio.ensure_future(scheduler.score(sequences, ANY))
        await engines.have_started(3)
        assert [len(batch) for batch in engines.started] == [3, 3, 3]
        for _ in range(3):
            engines.end()
            await asyncio.sleep(0)
        assert (await scoring).scores.keys() == set(sequences)

    run_pool(test, num_engines=3)


def test_the_next_batch_is_handed_over_shortly_before_the_engine_is_expected_to_end() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        seconds = 3 * EARLY_SECONDS
        scoring = asyncio.ensure_future(scheduler.score([sequence(n) for n in range(8)], ANY))
        await engines.have_started(1)
        await asyncio.sleep(seconds)
        assert len(engines.started) == 1  # how long a batch takes is not known yet
        engines.end()
        await engines.have_started(2)
        begun = perf_counter()
        await engines.have_started(3)
        assert seconds - 2 * EARLY_SECONDS < perf_counter() - begun
        assert len(engines.running) == 2
        await asyncio.sleep(2 * seconds)
        assert len(engines.started) == 3  # one ahead, and no more
        engines.end()
        engines.end(1)
        await engines.have_started(4)
        engines.end()
        assert len((await scoring).scores) == 8

    engines = run_pool(test, num_engines=1, max_batch_tokens=4)
    assert [len(batch) for batch in engines.started] == [2, 2, 2, 2]


def test_what_comes_before_the_end_is_near_is_in_the_next_batch() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        large = asyncio.ensure_future(scheduler.score([sequence(n) for n in range(8)], ANY))
        await engines.have_started(1)
        await asyncio.sleep(5 * EARLY_SECONDS)
        engines.end()
        await engines.have_started(2)
        small = asyncio.ensure_future(scheduler.score([sequence(100)], ANY))
        await engines.have_started(3)
        assert sequence(100) in engines.started[2]
        ending = asyncio.ensure_future(engines.end_all())
        await asyncio.gather(large, small)
        ending.cancel()

    run_pool(test, num_engines=1, max_batch_tokens=4)


def test_weights_change_behind_a_batch_that_was_handed_over_early() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        scoring = asyncio.ensure_future(scheduler.score([sequence(n) for n in range(6)], ANY))
        await engines.have_started(1)
        engines.end()
        await engines.have_started(3)  # the second one runs, the third one is next
        entered = asyncio.ensure_future(_enter(scheduler))
        engines.end()
        await asyncio.sleep(0.01)
        assert not entered.done()
        engines.end()
        await entered
        assert len((await scoring).scores) == 6

    run_pool(test, num_engines=1, max_batch_tokens=4)


def test_a_batch_ahead_is_taken_back_when_nobody_waits_for_it_any_more() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        first = asyncio.ensure_future(scheduler.score([sequence(1)], ANY))
        await engines.have_started(1)
        engines.end()
        await first
        running = asyncio.ensure_future(scheduler.score([sequence(2)], ANY))
        await engines.have_started(2)
        leaving = [asyncio.ensure_future(scheduler.score([sequence(3), sequence(4)], ANY)) for _ in range(2)]
        await engines.have_started(3)
        leaving.append(asyncio.ensure_future(scheduler.score([sequence(2), sequence(5)], ANY)))
        await asyncio.sleep(0.01)
        for each in leaving:  # all at once: the last one has nothing in the batch that is taken back
            each.cancel()
        await until(lambda: len(engines.running) == 1)
        again = asyncio.ensure_future(scheduler.score([sequence(3)], ANY))
        await engines.have_started(4)
        engines.end()
        assert (await running).scores.keys() == {sequence(2)}
        engines.end()
        assert (await again).scores.keys() == {sequence(3)}

    engines = run_pool(test, num_engines=1)
    assert engines.started[2:] == [[sequence(3), sequence(4)], [sequence(3)]]


async def _enter(scheduler: Scheduler) -> None:
    async with scheduler.exclusive():
        pass


def test_an_engine_that_is_done_gets_the_next_batch_while_others_compute() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        scoring = asyncio.ensure_future(scheduler.score([sequence(n) for n in range(8)], ANY))
        await engines.have_started(2)
        slow = engines.running[0][0]
        for num_started in (3, 4):
            engines.end(1)
            await engines.have_started(num_started)
        assert engines.running[0][0] is slow
        engines.end(1)
        engines.end(0)
        assert len((await scoring).scores) == 8

    engines = run_pool(test, max_batch_tokens=4)
    assert [len(batch) for batch in engines.started] == [2, 2, 2, 2]


def test_equal_sequences_are_computed_once_whichever_engine_has_them() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        first = asyncio.ensure_future(scheduler.score([sequence(2), sequence(3)], ANY))
        await engines.have_started(2)
        engines.num_engines = 3
        second = asyncio.ensure_future(scheduler.score([sequence(3), sequence(2)], ANY))
        with_parts = asyncio.ensure_future(scheduler.score([sequence(3)], ANY, parts=ScoreParts(norm=False)))
        await engines.have_started(3)
        ending = asyncio.ensure_future(engines.end_all())
        assert (await first).scores == (await second).scores
        assert (await with_parts).scores
        ending.cancel()

    engines = run_pool(test)
    assert engines.started == [[sequence(2)], [sequence(3)], [sequence(3)]]


def test_a_barrier_waits_for_every_engine() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        before = asyncio.ensure_future(scheduler.score([sequence(2), sequence(3)], ANY))
        await engines.have_started(2)
        is_alone = asyncio.Event()

        async def swap() -> None:
            async with scheduler.exclusive():
                assert engines.running == []
                is_alone.set()

        swapping = asyncio.ensure_future(swap())
        await asyncio.sleep(0)
        after = asyncio.ensure_future(scheduler.score([sequence(2), sequence(3)], ANY))
        engines.end()
        await asyncio.sleep(0.01)
        assert not is_alone.is_set()
        ending = asyncio.ensure_future(engines.end_all())
        await asyncio.gather(before, swapping, after)
        ending.cancel()

    assert len(run_pool(test).started) == 4


def test_the_batch_of_a_lost_engine_is_computed_elsewhere_once() -> None:
    told: list[int] = []

    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        sequences = [sequence(2), sequence(3)]
        scoring = asyncio.ensure_future(
            scheduler.score(sequences, ANY, on_scores=lambda scores: told.append(len(scores)))
        )
        await engines.have_started(2)
        engines.num_engines = 1
        engines.end(0, EngineLostError("the process has ended"))
        await asyncio.sleep(0.01)
        assert len(engines.started) == 2, "the other engine still computes"
        engines.end()
        await engines.have_started(3)
        engines.end()
        scored = await scoring
        assert [scored.scores[item] for item in sequences] == engines.scorer.score(sequences).scores

    engines = run_pool(test)
    assert engines.started == [[sequence(2)], [sequence(3)], [sequence(2)]]
    assert told == [0, 1, 1]


def test_a_request_whose_engines_are_lost_again_and_again_fails_and_others_go_on() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        deadly = asyncio.ensure_future(scheduler.score([sequence(2)], ANY))
        for number in range(1, MAX_LOST_ENGINES + 2):
            await engines.have_started(number)
            engines.end(0, EngineLostError("the process has ended"))
        with pytest.raises(EngineFailedError, match="3 engines ended while computing this request"):
            await deadly
        other = asyncio.ensure_future(scheduler.score([sequence(3)], ANY))
        await engines.have_started(MAX_LOST_ENGINES + 2)
        engines.end()
        assert (await other).scores

    run_pool(test)


def test_without_any_engine_work_waits_until_one_comes() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        scoring = asyncio.ensure_future(scheduler.score([sequence(2)], ANY))
        await asyncio.sleep(0.01)
        assert engines.started == []
        engines.num_engines = 1
        engines.on_change()
        await engines.have_started(1)
        engines.end()
        assert (await scoring).scores

    run_pool(test, num_engines=0)


def test_a_failed_batch_takes_the_rest_of_its_request_out_of_the_queue_and_the_other_engines_go_on() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        failing = asyncio.ensure_future(scheduler.score([sequence(n) for n in range(9)], ANY))
        await engines.have_started(2)
        engines.end(0, RuntimeError("no"))
        with pytest.raises(EngineFailedError, match="RuntimeError"):
            await failing
        other = asyncio.ensure_future(scheduler.score([sequence(100)], ANY))
        await engines.have_started(3)
        ending = asyncio.ensure_future(engines.end_all())
        assert (await other).scores
        ending.cancel()

    assert run_pool(test, max_batch_tokens=4).started[2:] == [[sequence(100)]]
