"""What group assembly holds, counts and gives back, on a fake scorer and without HTTP."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from tests.support.fake_scorer import MAX_SEQUENCE_TOKENS, VOCAB_SIZE, FakeScorer
from tests.support.waiting import until
from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import Completion, SampleRequest, SampleResponse, ScoringOptions
from vigor_service.engine.sequences import TokenSequence
from vigor_service.errors import GroupIncompleteError, QueueFullError
from vigor_service.observability.metrics import Metrics
from vigor_service.sample_groups.assembly import GroupAssembly
from vigor_service.sample_groups.samples import Sample, held_bytes
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.engine_pool import LocalEngine
from vigor_service.scheduling.scheduler import Scheduler
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.encoding import RequestEncoder
from vigor_service.scoring.service import Scoring
from vigor_service.scoring.tokenization import Encoder
from vigor_service.threads.preparation import Preparation
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.verification.fingerprint import initial_weights

SAMPLE_BYTES = held_bytes(TokenSequence((1, 2), (3,)))


class Bench:
    """A group assembly that may hold ``max_samples`` of three tokens."""

    def __init__(self, max_samples: int, timeout_seconds: float) -> None:
        self.scorer = FakeScorer()
        self.metrics = Metrics()
        self.compute, self.preparation = WorkerThread("compute"), Preparation(seconds=20.0)
        self.engine = LocalEngine(self.scorer, self.compute, initial_weights(self.scorer))
        admission = Admission(max_tokens=10_000, max_requests=100, metrics=self.metrics)
        current_weights = CurrentWeights(initial_weights(self.scorer), load=self.engine.load, metrics=self.metrics)
        self.scheduler = Scheduler(
            self.engine,
            current_weights=current_weights,
            admission=admission,
            cache=ScoreCache(0),
            max_batch_tokens=100,
            metrics=self.metrics,
        )
        scoring = Scoring(
            model="fake",
            encoder=RequestEncoder(Encoder(None, VOCAB_SIZE, MAX_SEQUENCE_TOKENS), self.preparation),
            admission=admission,
            scheduler=self.scheduler,
            preparation=self.preparation,
            metrics=self.metrics,
            timeout_seconds=20,
        )
        self.assembly = GroupAssembly(
            scoring, timeout_seconds=timeout_seconds, metrics=self.metrics, max_bytes=max_samples * SAMPLE_BYTES
        )

    def send(self, group: str, index: int, *, group_size: int = 2) -> asyncio.Task[SampleResponse]:
        sample = SampleRequest.model_validate(
            {"group": group, "group_size": group_size, "index": index, "prompt_ids": [1, 2], "completion": [3 + index]}
        )
        return asyncio.create_task(self.assembly.score(sample))

    def gauge(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"vigor_{name}")

    async def waiting(self, num_samples: int) -> None:
        await until(lambda: self.gauge("gathering_samples") == num_samples)


def _run(test: Callable[[Bench], Awaitable[None]], *, max_samples: int = 100, timeout_seconds: float = 20.0) -> Bench:
    async def run() -> Bench:
        bench = Bench(max_samples, timeout_seconds)
        bench.scheduler.start()
        try:
            async with asyncio.timeout(20):
                await test(bench)
        finally:
            bench.scorer.gate.set()
            bench.assembly.close()
            bench.scheduler.stop()
            bench.compute.close()
            bench.preparation.close()
        return bench

    return asyncio.run(run())


def test_a_sample_beyond_the_budget_is_refused_and_opens_no_group() -> None:
    async def test(bench: Bench) -> None:
        for number in range(2):
            bench.send(f"g{number}", 0)
        await bench.waiting(2)
        with pytest.raises(QueueFullError, match="too many samples"):
            await bench.send("other", 0)
        assert bench.gauge("gathering_groups") == bench.gauge("queued_requests") == 2

    _run(test, max_samples=2)


def test_a_group_that_is_dropped_gives_its_part_of_the_budget_back() -> None:
    async def test(bench: Bench) -> None:
        for _ in range(3):
            leaving = bench.send("g", 0)
            await bench.waiting(1)
            leaving.cancel()
            await bench.waiting(0)
        assert bench.gauge("queued_tokens") == bench.gauge("queued_requests") == 0

    _run(test, max_samples=1)


def test_groups_that_were_answered_make_room_the_oldest_first() -> None:
    async def test(bench: Bench) -> None:
        for group in ("first", "second"):
            await asyncio.gather(bench.send(group, 0), bench.send(group, 1))
        opened = bench.send("third", 0)
        await until(lambda: sum(map(len, bench.scorer.batches)) == 5)
        await bench.send("second", 0)  # it is remembered
        assert sum(map(len, bench.scorer.batches)) == 5
        bench.send("first", 0)  # it is not: this one waits for its group anew
        await bench.waiting(2)
        opened.cancel()

    _run(test, max_samples=4)


def test_what_waits_for_room_in_the_queue_counts_as_held() -> None:
    async def test(bench: Bench) -> None:
        with bench.assembly.holding(SAMPLE_BYTES):
            with pytest.raises(QueueFullError):
                await bench.send("g", 0, group_size=1)
            with pytest.raises(QueueFullError), bench.assembly.holding(1):
                pass
        assert (await bench.send("g", 0, group_size=1)).group == "g"

    _run(test, max_samples=1)


def test_a_sample_that_is_withdrawn_gives_its_tokens_back_and_is_not_computed() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        busy = bench.send("busy", 0, group_size=1)
        await asyncio.to_thread(bench.scorer.is_scoring.wait, 10)
        staying, leaving = bench.send("g", 0, group_size=3), bench.send("g", 1, group_size=3)
        await bench.waiting(2)
        assert bench.gauge("queued_tokens") == 9
        leaving.cancel()
        assert bench.assembly.withdraw("g", 1)
        assert not bench.assembly.withdraw("busy", 0)
        assert (bench.gauge("queued_tokens"), bench.gauge("gathering_samples")) == (6, 1)
        bench.scorer.gate.set()
        await busy
        async with bench.scheduler.exclusive():  # behind all that was asked for
            staying.cancel()

    bench = _run(test)
    # The one that stays is the same as the one that ran already.
    assert [[sequence.completion_ids for sequence in batch] for batch in bench.scorer.batches] == [[(3,)]]


def test_a_group_that_is_not_whole_in_time_gives_everything_back() -> None:
    async def test(bench: Bench) -> None:
        sent = [bench.send("g", index, group_size=3) for index in range(2)]
        for answer in sent:
            with pytest.raises(GroupIncompleteError):
                await answer
        assert bench.gauge("queued_tokens") == bench.gauge("queued_requests") == bench.gauge("gathering_samples") == 0
        await asyncio.gather(bench.send("g", 0), bench.send("g", 1))

    _run(test, max_samples=2, timeout_seconds=0.2)


def test_groups_and_samples_that_gather_are_counted_until_they_are_whole() -> None:
    async def test(bench: Bench) -> None:
        for number in range(50):
            bench.send(f"g{number}", 0)
        await bench.waiting(50)
        await bench.send("g0", 1)
        assert (bench.gauge("gathering_groups"), bench.gauge("gathering_samples")) == (49, 49)

    _run(test)


def test_a_held_sample_takes_about_the_memory_that_is_counted_for_it() -> None:
    encoder = Encoder(None, vocab_size=50_000, max_sequence_tokens=60_000)

    def encoded(ids: range) -> TokenSequence:
        return encoder.encode_sample(GivenPrompt(prompt_ids=[1]), Completion(ids=list(ids)))

    encoded(range(50_000))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held = [Sample(f"g{number}", 2, 0, encoded(range(1000 + number, 9000 + number))) for number in range(40)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted_bytes = sum(sample.num_bytes for sample in held)
    assert 0.5 * counted_bytes < after - before < counted_bytes


def test_ids_that_an_answer_may_return_are_counted() -> None:
    sequence = TokenSequence((1,), (2,) * 1000)
    plain = Sample("g", 1, 0, sequence)
    returned = Sample("g", 1, 0, sequence, options=ScoringOptions(return_token_ids=True))
    assert returned.num_bytes - plain.num_bytes == 8 * 1001
