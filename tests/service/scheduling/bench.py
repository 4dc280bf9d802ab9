"""A scheduler to test, in front of one fake scorer or of engines that end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from tests.support.fake_scorer import FakeScorer
from tests.support.waiting import until
from vigor_client.weight_format.writes import VerifiedWrite
from vigor_service.engine.interface import Attribution, BatchResult
from vigor_service.engine.sequences import ScoreParts, TokenSequence
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.engine_pool import LocalEngine
from vigor_service.scheduling.scheduler import Scheduler
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


def run(test: Callable[[Bench], Awaitable[None]], *, max_batch_tokens: int = 100, cache_entries: int = 0) -> Bench:
    bench = Bench(max_batch_tokens, cache_entries)

    async def tested() -> None:
        bench.scheduler.start()
        try:
            async with asyncio.timeout(20):
                await test(bench)
        finally:
            bench.scorer.gate.set()
            bench.scheduler.stop()

    asyncio.run(tested())
    bench.compute.close()
    return bench


def sequence(*ids: int, prompt: int = 1) -> TokenSequence:
    return TokenSequence((prompt,), ids)


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


def run_pool(
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

    async def tested() -> None:
        scheduler.start()
        try:
            async with asyncio.timeout(20):
                await test(scheduler, engines)
        finally:
            scheduler.stop()

    asyncio.run(tested())
    return engines
