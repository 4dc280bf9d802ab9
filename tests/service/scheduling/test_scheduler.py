"""The scheduler in front of one engine: batches, failures, what is taken back, what is told."""

from __future__ import annotations

import asyncio
from math import isnan
from time import perf_counter

import pytest

from tests.service.scheduling.bench import ANY, Bench, run, sequence
from tests.support.fake_scorer import FakeScorer
from tests.support.loop_meter import loop_meter
from tests.support.waiting import until
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence
from vigor_service.errors import EngineFailedError, WeightVersionMismatchError
from vigor_service.observability.request_record import begin_record
from vigor_service.scheduling.jobs import DoesNotFitError
from vigor_service.scheduling.scheduler import BEGUN_AT_ONCE
from vigor_service.weights.version import WeightRequirement


def test_scores_come_back_under_their_sequences() -> None:
    async def test(bench: Bench) -> None:
        sequences = [sequence(2), sequence(3, 4)]
        scored = await bench.scheduler.score(sequences, ANY)
        assert [scored.scores[item] for item in sequences] == bench.scorer.score(sequences).scores
        assert scored.weights == bench.current_weights.weights

    bench = run(test)
    assert "compute_0" in bench.scorer.thread_names


def test_requests_that_wait_share_a_batch_and_equal_sequences_are_computed_once() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([sequence(9)], ANY))
        await bench.held()
        others = [asyncio.ensure_future(bench.scheduler.score([sequence(2), sequence(n)], ANY)) for n in (3, 4)]
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        results = await asyncio.gather(first, *others)
        assert [len(result.scores) for result in results] == [1, 2, 2]

    bench = run(test)
    assert [len(batch) for batch in bench.scorer.batches] == [1, 3]


def _many(num: int) -> list[TokenSequence]:
    return [sequence(7, index % 300, index // 300) for index in range(num)]


def test_the_loop_serves_others_while_a_huge_request_is_queued() -> None:
    async def test(bench: Bench) -> None:
        sequences = _many(12 * BEGUN_AT_ONCE)
        async with loop_meter() as meter:
            huge = asyncio.ensure_future(bench.scheduler.score(sequences, ANY))
            scored = await huge
        assert len(scored.scores) == len(sequences)
        assert meter.longest_seconds < 0.1

    run(test, max_batch_tokens=4 * BEGUN_AT_ONCE, cache_entries=10)


def test_a_huge_request_that_is_taken_back_while_it_is_queued_leaves_nothing_behind() -> None:
    async def test(bench: Bench) -> None:
        huge = asyncio.ensure_future(bench.scheduler.score(_many(5 * BEGUN_AT_ONCE), ANY))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its first part is queued
        huge.cancel()
        later = asyncio.ensure_future(bench.scheduler.score([sequence(2)], ANY))
        await asyncio.sleep(0)  # it is submitted before the barrier
        async with bench.scheduler.exclusive():
            assert bench.scorer.batches == [[sequence(2)]]
        assert (await later).scores
        assert huge.cancelled()

    bench = run(test)
    assert bench.scorer.batches == [[sequence(2)]]


def test_what_is_known_of_a_huge_request_is_told_once_and_first() -> None:
    async def test(bench: Bench) -> None:
        sequences = _many(2 * BEGUN_AT_ONCE + 1)
        known, told = sequences[::BEGUN_AT_ONCE], list[int]()
        await bench.scheduler.score(known, ANY)
        await bench.scheduler.score(sequences, ANY, on_scores=lambda scores: told.append(len(scores)))
        assert told[0] == len(known)
        assert sum(told) == len(sequences)

    run(test, max_batch_tokens=100 * BEGUN_AT_ONCE, cache_entries=10)


def test_a_request_larger_than_a_batch_takes_several_and_its_time_is_accounted_for() -> None:
    async def test(bench: Bench) -> None:
        scored = await bench.scheduler.score([sequence(n) for n in range(7)], ANY)
        assert len(scored.scores) == 7
        assert scored.queue_seconds >= 0
        assert scored.compute_seconds > 0

    bench = run(test, max_batch_tokens=4)
    assert [len(batch) for batch in bench.scorer.batches] == [2, 2, 2, 1]


def _keep_the_loop_busy(seconds: float) -> None:
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass


def test_the_batches_of_a_request_lie_within_its_computation_however_late_the_loop_is() -> None:
    async def test(bench: Bench) -> None:
        def tell(_scores: object) -> None:  # called after each batch: the loop then returns late to the request
            asyncio.get_running_loop().call_soon(_keep_the_loop_busy, 0.05)

        record = begin_record(is_traced=True)
        scored = await bench.scheduler.score([sequence(2), sequence(3)], ANY, on_scores=tell)
        assert record.computation is not None
        queue, compute = record.computation.stages(perf_counter())
        assert (queue.ended, compute.began, compute.ended) == (scored.started_at,) * 2 + (scored.finished_at,)
        times = [compute.began, *(time for part in compute.parts for time in (part.began, part.ended)), compute.ended]
        assert times == sorted(times)
        assert len(compute.parts) == 2

    run(test, max_batch_tokens=2)


def test_a_request_without_sequences_is_answered() -> None:
    async def test(bench: Bench) -> None:
        assert (await bench.scheduler.score([], ANY)).scores == {}

    run(test)


def test_a_batch_that_fails_fails_its_requests_only() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fail_scoring = RuntimeError("out of memory")
        failing = [asyncio.ensure_future(bench.scheduler.score([sequence(n)], ANY)) for n in (1, 2)]
        for task in failing:
            with pytest.raises(EngineFailedError, match="RuntimeError"):
                await task
        bench.scorer.fail_scoring = None
        assert len((await bench.scheduler.score([sequence(3)], ANY)).scores) == 1
        assert bench.scheduler.is_alive

    run(test)


def test_a_failed_request_leaves_nothing_behind() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fail_scoring = RuntimeError("no")
        with pytest.raises(EngineFailedError):
            await bench.scheduler.score([sequence(n) for n in range(8)], ANY)
        bench.scorer.fail_scoring = None
        await bench.scheduler.score([sequence(100)], ANY)

    bench = run(test, max_batch_tokens=4)
    assert bench.scorer.batches == [[sequence(100)]]


def test_a_batch_that_does_not_fit_is_answered_and_the_next_are_smaller() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 7
        sequences = [sequence(n) for n in range(12)]
        scored = await bench.scheduler.score(sequences, ANY)
        assert [scored.scores[item] for item in sequences] == bench.scorer.score(sequences).scores
        assert bench.scheduler.max_batch_tokens == 4
        bench.scorer.tries.clear()
        await bench.scheduler.score([sequence(n) for n in range(100, 112)], ANY)

    bench = run(test, max_batch_tokens=16)
    assert bench.scorer.tries == [4] * 6
    assert bench.metrics.registry.get_sample_value("vigor_max_batch_tokens") == 4


def test_a_sequence_that_does_not_fit_alone_fails_its_own_request_only() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 10
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([sequence(1)], ANY))
        await bench.held()
        long, short = sequence(*range(20)), sequence(3, 4)
        neighbour = asyncio.ensure_future(bench.scheduler.score([short], ANY))
        failing = asyncio.ensure_future(bench.scheduler.score([long, *(sequence(n) for n in range(50))], ANY))
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        await first
        assert (await neighbour).scores == {short: FakeScorer().score([short]).scores[0]}
        with pytest.raises(DoesNotFitError) as raised:
            await failing
        assert raised.value.too_long == {long: 10}

    bench = run(test, max_batch_tokens=30)
    first, shared, *handed_over = bench.scorer.batches
    assert first == [sequence(1)]
    assert {sequence(*range(20)), sequence(3, 4)} < set(shared)
    assert len(handed_over) <= 1  # the rest of the request that failed left the queue


def test_cancelled_work_leaves_the_queue() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([sequence(1)], ANY))
        await bench.held()
        waiting = asyncio.ensure_future(bench.scheduler.score([sequence(2), sequence(3)], ANY))
        shared = asyncio.ensure_future(bench.scheduler.score([sequence(3)], ANY))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        await asyncio.gather(running, shared)

    bench = run(test)
    assert bench.scorer.batches == [[sequence(1)], [sequence(3)]]


def test_work_that_is_cancelled_while_it_runs_is_discarded() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([sequence(1)], ANY))
        await bench.held()
        running.cancel()
        bench.scorer.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len((await bench.scheduler.score([sequence(2)], ANY)).scores) == 1

    run(test)


def test_scores_of_an_earlier_request_are_not_computed_again() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.scheduler.score([sequence(2), sequence(3)], ANY)
        second = await bench.scheduler.score([sequence(3), sequence(4)], ANY)
        again = await bench.scheduler.score([sequence(2), sequence(4)], ANY)
        assert again.scores == {
            sequence(2): first.scores[sequence(2)],
            sequence(4): second.scores[sequence(4)],
        }
        assert again.weights == bench.current_weights.weights

    bench = run(test, cache_entries=1000)
    assert [set(batch) for batch in bench.scorer.batches] == [{sequence(2), sequence(3)}, {sequence(4)}]
    assert bench.metrics.registry.get_sample_value("vigor_cached_scores_total") == 3


def test_a_request_that_comes_while_the_same_is_computed_waits_for_its_scores() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([sequence(2)], ANY))
        await bench.held()
        second = asyncio.ensure_future(bench.scheduler.score([sequence(2)], ANY))
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        assert (await first).scores == (await second).scores

    assert len(run(test, cache_entries=1000).scorer.batches) == 1


def test_a_sequence_that_did_not_fit_is_tried_again() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 3
        for _ in range(2):
            with pytest.raises(DoesNotFitError):
                await bench.scheduler.score([sequence(1, 2, 3, 4, 5)], ANY)
        bench.scorer.fitting_tokens = 100
        await bench.scheduler.score([sequence(1, 2, 3, 4, 5)], ANY)

    assert len(run(test, cache_entries=1000).scorer.batches) == 3


def test_a_finished_request_is_measured() -> None:
    async def test(bench: Bench) -> None:
        await bench.scheduler.score([sequence(1), sequence(2)], ANY)

    value = run(test).metrics.registry.get_sample_value
    assert value("vigor_batch_sequences_sum") == 2
    assert value("vigor_batch_tokens_sum") == 4
    assert value("vigor_queue_seconds_count") == value("vigor_compute_seconds_count") == 1


def test_it_is_alive_between_start_and_stop() -> None:
    async def test(bench: Bench) -> None:
        assert bench.scheduler.is_alive
        bench.scheduler.stop()
        await until(lambda: not bench.scheduler.is_alive)

    assert not Bench(100, 0).scheduler.is_alive
    run(test)


def test_an_owner_is_told_of_scores_batch_by_batch_from_its_turn_on() -> None:
    told: list[int] = []

    async def test(bench: Bench) -> None:
        scored = await bench.scheduler.score(
            [sequence(n) for n in range(5)], ANY, on_scores=lambda scores: told.append(len(scores))
        )
        assert len(scored.scores) == 5

    run(test, max_batch_tokens=4)
    assert told == [0, 2, 2, 1]


def test_an_owner_whose_sequence_did_not_fit_is_told_nothing_of_that_batch() -> None:
    told: list[int] = []

    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 5
        with pytest.raises(DoesNotFitError):
            await bench.scheduler.score(
                [sequence(2), sequence(*range(9))], ANY, on_scores=lambda scores: told.append(len(scores))
            )

    run(test)
    assert told == [0]


def test_an_owner_of_other_weights_is_told_nothing() -> None:
    told: list[int] = []

    async def test(bench: Bench) -> None:
        with pytest.raises(WeightVersionMismatchError):
            await bench.scheduler.score(
                [sequence(2)], WeightRequirement(version=7), on_scores=lambda scores: told.append(len(scores))
            )

    run(test)
    assert told == []


def test_sequences_that_need_other_parts_are_in_batches_of_their_own_which_take_turns() -> None:
    signals = ScoreParts(norm=False)

    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([sequence(9)], ANY))
        await bench.held()
        norms = bench.scheduler.score([sequence(2), sequence(3)], ANY)
        others = bench.scheduler.score([sequence(2), sequence(4)], ANY, parts=signals)
        waiting = [asyncio.ensure_future(work) for work in (norms, others)]
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        with_norms, without = [result.scores for result in await asyncio.gather(*waiting)]
        assert not any(isnan(score.grad_norm) for score in with_norms.values())
        assert all(isnan(score.grad_norm) for score in without.values())
        await first

    bench = run(test, max_batch_tokens=2)
    ids = [[sequence.completion_ids[0] for sequence in batch] for batch in bench.scorer.batches]
    assert ids == [[9], [2], [2], [3], [4]]
    assert bench.scorer.parts == [NORM_AND_SIGNALS, NORM_AND_SIGNALS, signals, NORM_AND_SIGNALS, signals]


def test_what_was_measured_with_its_norm_is_not_computed_again_for_its_signals() -> None:
    async def test(bench: Bench) -> None:
        await bench.scheduler.score([sequence(2)], ANY)
        await bench.scheduler.score([sequence(2)], ANY, parts=ScoreParts(norm=False))
        await bench.scheduler.score([sequence(2)], ANY, parts=ScoreParts(norm=False, token_logprobs=True))

    bench = run(test, cache_entries=10)
    assert bench.scorer.parts == [NORM_AND_SIGNALS, ScoreParts(norm=False, token_logprobs=True)]


def test_a_request_without_norms_that_is_taken_back_leaves_nothing_behind() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([sequence(9)], ANY))
        await bench.held()
        taken_back = asyncio.ensure_future(bench.scheduler.score([sequence(2)], ANY, parts=ScoreParts(norm=False)))
        await asyncio.sleep(0)
        taken_back.cancel()
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        await first
        async with bench.scheduler.exclusive():
            assert bench.scorer.batches == [[sequence(9)]]

    run(test)
