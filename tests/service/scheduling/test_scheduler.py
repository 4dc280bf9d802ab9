import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import isnan
from time import perf_counter

import pytest

from tests.support.fake_scorer import FakeScorer
from tests.support.loop_meter import loop_meter
from tests.support.waiting import until
from vigor_client.weight_format.writes import VerifiedWrite
from vigor_service.engine.interface import Attribution, BatchResult
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence
from vigor_service.errors import EngineFailedError, WeightsPoisonedError, WeightVersionMismatchError
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.observability.metrics import Metrics
from vigor_service.observability.request_record import begin_record
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.engine_pool import EngineLostError, LocalEngine
from vigor_service.scheduling.jobs import DoesNotFitError
from vigor_service.scheduling.running_batches import EARLY_SECONDS
from vigor_service.scheduling.scheduler import BEGUN_AT_ONCE, MAX_LOST_ENGINES, Scheduler
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.verification.fingerprint import initial_weights
from vigor_service.weights.version import WeightRequirement, Weights

ANY = WeightRequirement()


class Bench:
    """A scheduler in front of a fake scorer."""

    def __init__(self, max_batch_tokens: int, cache_entries: int) -> None:
        self.scorer = FakeScorer()
        self.metrics = Metrics()
        self.compute = WorkerThread("compute")
        self.engine = LocalEngine(self.scorer, self.compute, initial_weights(self.scorer))
        self.current_weights = CurrentWeights(initial_weights(self.scorer), load=self.engine.load, metrics=self.metrics)
        self.scheduler = Scheduler(
            self.engine,
            current_weights=self.current_weights,
            admission=Admission(max_tokens=10_000, max_requests=100, metrics=self.metrics),
            cache=ScoreCache(cache_entries),
            max_batch_tokens=max_batch_tokens,
            metrics=self.metrics,
        )

    async def held(self) -> None:
        """Wait until a batch is at the gate."""
        await asyncio.to_thread(self.scorer.is_scoring.wait, 10)


def _run(test: Callable[[Bench], Awaitable[None]], *, max_batch_tokens: int = 100, cache_entries: int = 0) -> Bench:
    bench = Bench(max_batch_tokens, cache_entries)

    async def run() -> None:
        bench.scheduler.start()
        try:
            async with asyncio.timeout(20):
                await test(bench)
        finally:
            bench.scorer.gate.set()
            bench.scheduler.stop()

    asyncio.run(run())
    bench.compute.close()
    return bench


def _sequence(*ids: int, prompt: int = 1) -> TokenSequence:
    return TokenSequence((prompt,), ids)


def test_scores_come_back_under_their_sequences() -> None:
    async def test(bench: Bench) -> None:
        sequences = [_sequence(2), _sequence(3, 4)]
        scored = await bench.scheduler.score(sequences, ANY)
        assert [scored.scores[item] for item in sequences] == bench.scorer.score(sequences).scores
        assert scored.weights == bench.current_weights.weights

    bench = _run(test)
    assert "compute_0" in bench.scorer.thread_names


def test_requests_that_wait_share_a_batch_and_equal_sequences_are_computed_once() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([_sequence(9)], ANY))
        await bench.held()
        others = [asyncio.ensure_future(bench.scheduler.score([_sequence(2), _sequence(n)], ANY)) for n in (3, 4)]
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        results = await asyncio.gather(first, *others)
        assert [len(result.scores) for result in results] == [1, 2, 2]

    bench = _run(test)
    assert [len(batch) for batch in bench.scorer.batches] == [1, 3]


def _many(num: int) -> list[TokenSequence]:
    return [_sequence(7, index % 300, index // 300) for index in range(num)]


def test_the_loop_serves_others_while_a_huge_request_is_queued() -> None:
    async def test(bench: Bench) -> None:
        sequences = _many(12 * BEGUN_AT_ONCE)
        async with loop_meter() as meter:
            huge = asyncio.ensure_future(bench.scheduler.score(sequences, ANY))
            scored = await huge
        assert len(scored.scores) == len(sequences)
        assert meter.longest_seconds < 0.1

    _run(test, max_batch_tokens=4 * BEGUN_AT_ONCE, cache_entries=10)


def test_a_huge_request_that_is_taken_back_while_it_is_queued_leaves_nothing_behind() -> None:
    async def test(bench: Bench) -> None:
        huge = asyncio.ensure_future(bench.scheduler.score(_many(5 * BEGUN_AT_ONCE), ANY))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # its first part is queued
        huge.cancel()
        later = asyncio.ensure_future(bench.scheduler.score([_sequence(2)], ANY))
        await asyncio.sleep(0)  # it is submitted before the barrier
        async with bench.scheduler.exclusive():
            assert bench.scorer.batches == [[_sequence(2)]]
        assert (await later).scores
        assert huge.cancelled()

    bench = _run(test)
    assert bench.scorer.batches == [[_sequence(2)]]


def test_what_is_known_of_a_huge_request_is_told_once_and_first() -> None:
    async def test(bench: Bench) -> None:
        sequences = _many(2 * BEGUN_AT_ONCE + 1)
        known, told = sequences[::BEGUN_AT_ONCE], list[int]()
        await bench.scheduler.score(known, ANY)
        await bench.scheduler.score(sequences, ANY, on_scores=lambda scores: told.append(len(scores)))
        assert told[0] == len(known)
        assert sum(told) == len(sequences)

    _run(test, max_batch_tokens=100 * BEGUN_AT_ONCE, cache_entries=10)


def test_a_request_larger_than_a_batch_takes_several_and_its_time_is_accounted_for() -> None:
    async def test(bench: Bench) -> None:
        scored = await bench.scheduler.score([_sequence(n) for n in range(7)], ANY)
        assert len(scored.scores) == 7
        assert scored.queue_seconds >= 0
        assert scored.compute_seconds > 0

    bench = _run(test, max_batch_tokens=4)
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
        scored = await bench.scheduler.score([_sequence(2), _sequence(3)], ANY, on_scores=tell)
        assert record.computation is not None
        queue, compute = record.computation.stages(perf_counter())
        assert (queue.ended, compute.began, compute.ended) == (scored.started_at,) * 2 + (scored.finished_at,)
        times = [compute.began, *(time for part in compute.parts for time in (part.began, part.ended)), compute.ended]
        assert times == sorted(times)
        assert len(compute.parts) == 2

    _run(test, max_batch_tokens=2)


def test_a_request_without_sequences_is_answered() -> None:
    async def test(bench: Bench) -> None:
        assert (await bench.scheduler.score([], ANY)).scores == {}

    _run(test)


def test_a_batch_that_fails_fails_its_requests_only() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fail_scoring = RuntimeError("out of memory")
        failing = [asyncio.ensure_future(bench.scheduler.score([_sequence(n)], ANY)) for n in (1, 2)]
        for task in failing:
            with pytest.raises(EngineFailedError, match="RuntimeError"):
                await task
        bench.scorer.fail_scoring = None
        assert len((await bench.scheduler.score([_sequence(3)], ANY)).scores) == 1
        assert bench.scheduler.is_alive

    _run(test)


def test_a_failed_request_leaves_nothing_behind() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fail_scoring = RuntimeError("no")
        with pytest.raises(EngineFailedError):
            await bench.scheduler.score([_sequence(n) for n in range(8)], ANY)
        bench.scorer.fail_scoring = None
        await bench.scheduler.score([_sequence(100)], ANY)

    bench = _run(test, max_batch_tokens=4)
    assert bench.scorer.batches == [[_sequence(100)]]


def test_a_batch_that_does_not_fit_is_answered_and_the_next_are_smaller() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 7
        sequences = [_sequence(n) for n in range(12)]
        scored = await bench.scheduler.score(sequences, ANY)
        assert [scored.scores[item] for item in sequences] == bench.scorer.score(sequences).scores
        assert bench.scheduler.max_batch_tokens == 4
        bench.scorer.tries.clear()
        await bench.scheduler.score([_sequence(n) for n in range(100, 112)], ANY)

    bench = _run(test, max_batch_tokens=16)
    assert bench.scorer.tries == [4] * 6
    assert bench.metrics.registry.get_sample_value("vigor_max_batch_tokens") == 4


def test_a_sequence_that_does_not_fit_alone_fails_its_own_request_only() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 10
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([_sequence(1)], ANY))
        await bench.held()
        long, short = _sequence(*range(20)), _sequence(3, 4)
        neighbour = asyncio.ensure_future(bench.scheduler.score([short], ANY))
        failing = asyncio.ensure_future(bench.scheduler.score([long, *(_sequence(n) for n in range(50))], ANY))
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        await first
        assert (await neighbour).scores == {short: FakeScorer().score([short]).scores[0]}
        with pytest.raises(DoesNotFitError) as raised:
            await failing
        assert raised.value.too_long == {long: 10}

    bench = _run(test, max_batch_tokens=30)
    first, shared, *handed_over = bench.scorer.batches
    assert first == [_sequence(1)]
    assert {_sequence(*range(20)), _sequence(3, 4)} < set(shared)
    assert len(handed_over) <= 1  # the rest of the request that failed left the queue


def test_cancelled_work_leaves_the_queue() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([_sequence(1)], ANY))
        await bench.held()
        waiting = asyncio.ensure_future(bench.scheduler.score([_sequence(2), _sequence(3)], ANY))
        shared = asyncio.ensure_future(bench.scheduler.score([_sequence(3)], ANY))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        await asyncio.gather(running, shared)

    bench = _run(test)
    assert bench.scorer.batches == [[_sequence(1)], [_sequence(3)]]


def test_work_that_is_cancelled_while_it_runs_is_discarded() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([_sequence(1)], ANY))
        await bench.held()
        running.cancel()
        bench.scorer.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len((await bench.scheduler.score([_sequence(2)], ANY)).scores) == 1

    _run(test)


def test_scores_of_an_earlier_request_are_not_computed_again() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.scheduler.score([_sequence(2), _sequence(3)], ANY)
        second = await bench.scheduler.score([_sequence(3), _sequence(4)], ANY)
        again = await bench.scheduler.score([_sequence(2), _sequence(4)], ANY)
        assert again.scores == {
            _sequence(2): first.scores[_sequence(2)],
            _sequence(4): second.scores[_sequence(4)],
        }
        assert again.weights == bench.current_weights.weights

    bench = _run(test, cache_entries=1000)
    assert [set(batch) for batch in bench.scorer.batches] == [{_sequence(2), _sequence(3)}, {_sequence(4)}]
    assert bench.metrics.registry.get_sample_value("vigor_cached_scores_total") == 3


def test_a_request_that_comes_while_the_same_is_computed_waits_for_its_scores() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([_sequence(2)], ANY))
        await bench.held()
        second = asyncio.ensure_future(bench.scheduler.score([_sequence(2)], ANY))
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        assert (await first).scores == (await second).scores

    assert len(_run(test, cache_entries=1000).scorer.batches) == 1


def test_a_sequence_that_did_not_fit_is_tried_again() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 3
        for _ in range(2):
            with pytest.raises(DoesNotFitError):
                await bench.scheduler.score([_sequence(1, 2, 3, 4, 5)], ANY)
        bench.scorer.fitting_tokens = 100
        await bench.scheduler.score([_sequence(1, 2, 3, 4, 5)], ANY)

    assert len(_run(test, cache_entries=1000).scorer.batches) == 3


def test_a_barrier_waits_for_what_came_before_and_holds_what_comes_after() -> None:
    async def test(bench: Bench) -> None:
        events: list[str] = []

        async def score(name: str, marker: int) -> None:
            await bench.scheduler.score([_sequence(n, prompt=marker) for n in range(4)], ANY)
            events.append(name)

        async def swap() -> None:
            async with bench.scheduler.exclusive():
                events.append("swap")

        bench.scorer.gate.clear()
        before = asyncio.ensure_future(score("before", 1))
        await bench.held()
        swapping = asyncio.ensure_future(swap())
        await asyncio.sleep(0)
        after = asyncio.ensure_future(score("after", 2))
        bench.scorer.gate.set()
        await asyncio.gather(before, swapping, after)
        assert events == ["before", "swap", "after"]

    bench = _run(test, max_batch_tokens=4)
    assert all(len({item.prompt_ids for item in batch}) == 1 for batch in bench.scorer.batches)


def test_all_scores_of_a_request_come_from_one_version() -> None:
    async def test(bench: Bench) -> None:
        sequences = [_sequence(n) for n in range(8)]
        alone = bench.scorer.score(sequences).scores
        bench.scorer.gate.clear()
        before = asyncio.ensure_future(bench.scheduler.score(sequences, ANY))
        await bench.held()

        async def double() -> None:
            async with bench.scheduler.exclusive():
                for tensor in bench.scorer.parameters.values():
                    tensor.mul_(2)

        doubling = asyncio.ensure_future(double())
        await asyncio.sleep(0)
        after = asyncio.ensure_future(bench.scheduler.score(sequences, ANY))
        bench.scorer.gate.set()
        scored = await before
        assert [scored.scores[item] for item in sequences] == alone
        await doubling
        scored = await after
        assert [scored.scores[item] for item in sequences] == bench.scorer.score(sequences).scores

    _run(test, max_batch_tokens=4)


def test_a_cancelled_barrier_does_not_stop_the_queue() -> None:
    async def test(bench: Bench) -> None:
        async def swap() -> None:
            async with bench.scheduler.exclusive():
                raise AssertionError("it was cancelled before")

        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([_sequence(1)], ANY))
        await bench.held()
        swapping = asyncio.ensure_future(swap())
        await asyncio.sleep(0)
        swapping.cancel()
        bench.scorer.gate.set()
        await running
        await bench.scheduler.score([_sequence(2)], ANY)

    _run(test)


def test_a_failure_behind_a_barrier_goes_to_who_asked_and_the_queue_goes_on() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(ArithmeticError):
            async with bench.scheduler.exclusive():
                raise ArithmeticError
        await bench.scheduler.score([_sequence(2)], ANY)

    _run(test)


def test_the_requirement_is_checked_when_the_turn_has_come() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([_sequence(1)], WeightRequirement(version=0)))
        await bench.held()

        async def poison() -> None:
            async with bench.scheduler.exclusive():
                bench.current_weights.state = "poisoned"

        poisoning = asyncio.ensure_future(poison())
        await asyncio.sleep(0)
        late = asyncio.ensure_future(bench.scheduler.score([_sequence(2)], WeightRequirement(version=0)))
        bench.scorer.gate.set()
        await asyncio.gather(running, poisoning)
        with pytest.raises(WeightsPoisonedError):
            await late
        bench.current_weights.state = "ready"
        with pytest.raises(WeightVersionMismatchError):
            await bench.scheduler.score([_sequence(2)], WeightRequirement(version=1))

    bench = _run(test)
    assert bench.scorer.batches == [[_sequence(1)]]


def test_a_finished_request_is_measured() -> None:
    async def test(bench: Bench) -> None:
        await bench.scheduler.score([_sequence(1), _sequence(2)], ANY)

    value = _run(test).metrics.registry.get_sample_value
    assert value("vigor_batch_sequences_sum") == 2
    assert value("vigor_batch_tokens_sum") == 4
    assert value("vigor_queue_seconds_count") == value("vigor_compute_seconds_count") == 1


def test_it_is_alive_between_start_and_stop() -> None:
    async def test(bench: Bench) -> None:
        assert bench.scheduler.is_alive
        bench.scheduler.stop()
        await until(lambda: not bench.scheduler.is_alive)

    assert not Bench(100, 0).scheduler.is_alive
    _run(test)


def test_an_owner_is_told_of_scores_batch_by_batch_from_its_turn_on() -> None:
    told: list[int] = []

    async def test(bench: Bench) -> None:
        scored = await bench.scheduler.score(
            [_sequence(n) for n in range(5)], ANY, on_scores=lambda scores: told.append(len(scores))
        )
        assert len(scored.scores) == 5

    _run(test, max_batch_tokens=4)
    assert told == [0, 2, 2, 1]


def test_an_owner_whose_sequence_did_not_fit_is_told_nothing_of_that_batch() -> None:
    told: list[int] = []

    async def test(bench: Bench) -> None:
        bench.scorer.fitting_tokens = 5
        with pytest.raises(DoesNotFitError):
            await bench.scheduler.score(
                [_sequence(2), _sequence(*range(9))], ANY, on_scores=lambda scores: told.append(len(scores))
            )

    _run(test)
    assert told == [0]


def test_an_owner_of_other_weights_is_told_nothing() -> None:
    told: list[int] = []

    async def test(bench: Bench) -> None:
        with pytest.raises(WeightVersionMismatchError):
            await bench.scheduler.score(
                [_sequence(2)], WeightRequirement(version=7), on_scores=lambda scores: told.append(len(scores))
            )

    _run(test)
    assert told == []


def test_sequences_that_need_other_parts_are_in_batches_of_their_own_which_take_turns() -> None:
    signals = ScoreParts(norm=False)

    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([_sequence(9)], ANY))
        await bench.held()
        norms = bench.scheduler.score([_sequence(2), _sequence(3)], ANY)
        others = bench.scheduler.score([_sequence(2), _sequence(4)], ANY, parts=signals)
        waiting = [asyncio.ensure_future(work) for work in (norms, others)]
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        with_norms, without = [result.scores for result in await asyncio.gather(*waiting)]
        assert not any(isnan(score.grad_norm) for score in with_norms.values())
        assert all(isnan(score.grad_norm) for score in without.values())
        await first

    bench = _run(test, max_batch_tokens=2)
    ids = [[sequence.completion_ids[0] for sequence in batch] for batch in bench.scorer.batches]
    assert ids == [[9], [2], [2], [3], [4]]
    assert bench.scorer.parts == [NORM_AND_SIGNALS, NORM_AND_SIGNALS, signals, NORM_AND_SIGNALS, signals]


def test_what_was_measured_with_its_norm_is_not_computed_again_for_its_signals() -> None:
    async def test(bench: Bench) -> None:
        await bench.scheduler.score([_sequence(2)], ANY)
        await bench.scheduler.score([_sequence(2)], ANY, parts=ScoreParts(norm=False))
        await bench.scheduler.score([_sequence(2)], ANY, parts=ScoreParts(norm=False, token_logprobs=True))

    bench = _run(test, cache_entries=10)
    assert bench.scorer.parts == [NORM_AND_SIGNALS, ScoreParts(norm=False, token_logprobs=True)]


def test_a_request_without_norms_that_is_taken_back_leaves_nothing_behind() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        first = asyncio.ensure_future(bench.scheduler.score([_sequence(9)], ANY))
        await bench.held()
        taken_back = asyncio.ensure_future(bench.scheduler.score([_sequence(2)], ANY, parts=ScoreParts(norm=False)))
        await asyncio.sleep(0)
        taken_back.cancel()
        await asyncio.sleep(0)
        bench.scorer.gate.set()
        await first
        async with bench.scheduler.exclusive():
            assert bench.scorer.batches == [[_sequence(9)]]

    _run(test)


class FakeEngines:
    """A pool whose batches end when the test says so."""

    def __init__(self, num_engines: int) -> None:
        self.num_engines = num_engines
        self.num_ahead = 0
        self.scorer = FakeScorer()
        self.running: list[tuple[list[TokenSequence], asyncio.Future[None]]] = []
        self.started: list[list[TokenSequence]] = []
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def measure_batch_tokens(self) -> int:
        raise NotImplementedError

    def statuses(self) -> Sequence[EngineStatus]:
        raise NotImplementedError

    def scale(self, num_engines: int) -> None:
        raise NotImplementedError

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        assert len(self.running) < self.num_engines + self.num_ahead, "there is no free engine"
        turn = list(sequences), asyncio.get_running_loop().create_future()
        self.running.append(turn)
        self.started.append(turn[0])
        try:
            await turn[1]
        finally:
            self.running.remove(turn)
        return self.scorer.score(sequences, parts)

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        raise NotImplementedError

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        raise NotImplementedError

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        raise NotImplementedError

    async def have_started(self, num_batches: int) -> None:
        await until(lambda: len(self.started) >= num_batches)

    def end(self, number: int = 0, error: Exception | None = None) -> None:
        """End the batch that has run for longest, or one behind it."""
        _, end = self.running[number]
        end.set_result(None) if error is None else end.set_exception(error)

    async def end_all(self) -> None:
        while True:
            for _, end in self.running:
                if not end.done():
                    end.set_result(None)
            await asyncio.sleep(0)


def _run_pool(
    test: Callable[[Scheduler, FakeEngines], Awaitable[None]],
    *,
    num_engines: int = 2,
    max_batch_tokens: int = 100,
    cache_entries: int = 0,
) -> FakeEngines:
    engines, metrics = FakeEngines(num_engines), Metrics()
    current = CurrentWeights(initial_weights(engines.scorer), load=engines.load, metrics=metrics)
    scheduler = Scheduler(
        engines,
        current_weights=current,
        admission=Admission(max_tokens=10_000, max_requests=100, metrics=metrics),
        cache=ScoreCache(cache_entries),
        max_batch_tokens=max_batch_tokens,
        metrics=metrics,
    )

    async def run() -> None:
        scheduler.start()
        try:
            async with asyncio.timeout(20):
                await test(scheduler, engines)
        finally:
            scheduler.stop()

    asyncio.run(run())
    return engines


def test_a_request_is_split_over_the_engines_that_are_free() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        sequences = [_sequence(n) for n in range(9)]
        scoring = asyncio.ensure_future(scheduler.score(sequences, ANY))
        await engines.have_started(3)
        assert [len(batch) for batch in engines.started] == [3, 3, 3]
        for _ in range(3):
            engines.end()
            await asyncio.sleep(0)
        assert (await scoring).scores.keys() == set(sequences)

    _run_pool(test, num_engines=3)


def test_the_next_batch_is_handed_over_shortly_before_the_engine_is_expected_to_end() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        seconds = 3 * EARLY_SECONDS
        scoring = asyncio.ensure_future(scheduler.score([_sequence(n) for n in range(8)], ANY))
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

    engines = _run_pool(test, num_engines=1, max_batch_tokens=4)
    assert [len(batch) for batch in engines.started] == [2, 2, 2, 2]


def test_what_comes_before_the_end_is_near_is_in_the_next_batch() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        large = asyncio.ensure_future(scheduler.score([_sequence(n) for n in range(8)], ANY))
        await engines.have_started(1)
        await asyncio.sleep(5 * EARLY_SECONDS)
        engines.end()
        await engines.have_started(2)
        small = asyncio.ensure_future(scheduler.score([_sequence(100)], ANY))
        await engines.have_started(3)
        assert _sequence(100) in engines.started[2]
        ending = asyncio.ensure_future(engines.end_all())
        await asyncio.gather(large, small)
        ending.cancel()

    _run_pool(test, num_engines=1, max_batch_tokens=4)


def test_weights_change_behind_a_batch_that_was_handed_over_early() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        scoring = asyncio.ensure_future(scheduler.score([_sequence(n) for n in range(6)], ANY))
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

    _run_pool(test, num_engines=1, max_batch_tokens=4)


def test_a_batch_ahead_is_taken_back_when_nobody_waits_for_it_any_more() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        engines.num_ahead = 1
        first = asyncio.ensure_future(scheduler.score([_sequence(1)], ANY))
        await engines.have_started(1)
        engines.end()
        await first
        running = asyncio.ensure_future(scheduler.score([_sequence(2)], ANY))
        await engines.have_started(2)
        leaving = [asyncio.ensure_future(scheduler.score([_sequence(3), _sequence(4)], ANY)) for _ in range(2)]
        await engines.have_started(3)
        leaving.append(asyncio.ensure_future(scheduler.score([_sequence(2), _sequence(5)], ANY)))
        await asyncio.sleep(0.01)
        for each in leaving:  # all at once: the last one has nothing in the batch that is taken back
            each.cancel()
        await until(lambda: len(engines.running) == 1)
        again = asyncio.ensure_future(scheduler.score([_sequence(3)], ANY))
        await engines.have_started(4)
        engines.end()
        assert (await running).scores.keys() == {_sequence(2)}
        engines.end()
        assert (await again).scores.keys() == {_sequence(3)}

    engines = _run_pool(test, num_engines=1)
    assert engines.started[2:] == [[_sequence(3), _sequence(4)], [_sequence(3)]]


async def _enter(scheduler: Scheduler) -> None:
    async with scheduler.exclusive():
        pass


def test_an_engine_that_is_done_gets_the_next_batch_while_others_compute() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        scoring = asyncio.ensure_future(scheduler.score([_sequence(n) for n in range(8)], ANY))
        await engines.have_started(2)
        slow = engines.running[0][0]
        for num_started in (3, 4):
            engines.end(1)
            await engines.have_started(num_started)
        assert engines.running[0][0] is slow
        engines.end(1)
        engines.end(0)
        assert len((await scoring).scores) == 8

    engines = _run_pool(test, max_batch_tokens=4)
    assert [len(batch) for batch in engines.started] == [2, 2, 2, 2]


def test_equal_sequences_are_computed_once_whichever_engine_has_them() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        first = asyncio.ensure_future(scheduler.score([_sequence(2), _sequence(3)], ANY))
        await engines.have_started(2)
        engines.num_engines = 3
        second = asyncio.ensure_future(scheduler.score([_sequence(3), _sequence(2)], ANY))
        with_parts = asyncio.ensure_future(scheduler.score([_sequence(3)], ANY, parts=ScoreParts(norm=False)))
        await engines.have_started(3)
        ending = asyncio.ensure_future(engines.end_all())
        assert (await first).scores == (await second).scores
        assert (await with_parts).scores
        ending.cancel()

    engines = _run_pool(test)
    assert engines.started == [[_sequence(2)], [_sequence(3)], [_sequence(3)]]


def test_a_barrier_waits_for_every_engine() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        before = asyncio.ensure_future(scheduler.score([_sequence(2), _sequence(3)], ANY))
        await engines.have_started(2)
        is_alone = asyncio.Event()

        async def swap() -> None:
            async with scheduler.exclusive():
                assert engines.running == []
                is_alone.set()

        swapping = asyncio.ensure_future(swap())
        await asyncio.sleep(0)
        after = asyncio.ensure_future(scheduler.score([_sequence(2), _sequence(3)], ANY))
        engines.end()
        await asyncio.sleep(0.01)
        assert not is_alone.is_set()
        ending = asyncio.ensure_future(engines.end_all())
        await asyncio.gather(before, swapping, after)
        ending.cancel()

    assert len(_run_pool(test).started) == 4


def test_the_batch_of_a_lost_engine_is_computed_elsewhere_once() -> None:
    told: list[int] = []

    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        sequences = [_sequence(2), _sequence(3)]
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

    engines = _run_pool(test)
    assert engines.started == [[_sequence(2)], [_sequence(3)], [_sequence(2)]]
    assert told == [0, 1, 1]


def test_a_request_whose_engines_are_lost_again_and_again_fails_and_others_go_on() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        deadly = asyncio.ensure_future(scheduler.score([_sequence(2)], ANY))
        for number in range(1, MAX_LOST_ENGINES + 2):
            await engines.have_started(number)
            engines.end(0, EngineLostError("the process has ended"))
        with pytest.raises(
            EngineFailedError, match="3 engines ended while computing this request, so it is not tried again"
        ):
            await deadly
        other = asyncio.ensure_future(scheduler.score([_sequence(3)], ANY))
        await engines.have_started(MAX_LOST_ENGINES + 2)
        engines.end()
        assert (await other).scores

    _run_pool(test)


def test_without_any_engine_work_waits_until_one_comes() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        scoring = asyncio.ensure_future(scheduler.score([_sequence(2)], ANY))
        await asyncio.sleep(0.01)
        assert engines.started == []
        engines.num_engines = 1
        engines.on_change()
        await engines.have_started(1)
        engines.end()
        assert (await scoring).scores

    _run_pool(test, num_engines=0)


def test_a_failed_batch_takes_the_rest_of_its_request_out_of_the_queue_and_the_other_engines_go_on() -> None:
    async def test(scheduler: Scheduler, engines: FakeEngines) -> None:
        failing = asyncio.ensure_future(scheduler.score([_sequence(n) for n in range(9)], ANY))
        await engines.have_started(2)
        engines.end(0, RuntimeError("no"))
        with pytest.raises(EngineFailedError, match="RuntimeError"):
            await failing
        other = asyncio.ensure_future(scheduler.score([_sequence(100)], ANY))
        await engines.have_started(3)
        ending = asyncio.ensure_future(engines.end_all())
        assert (await other).scores
        ending.cancel()

    assert _run_pool(test, max_batch_tokens=4).started[2:] == [[_sequence(100)]]
