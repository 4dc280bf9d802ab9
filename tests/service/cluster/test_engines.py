"""The pool of engines in other processes, with engines of this one that end when a test says so."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest
import torch

from tests.support.fake_handle import FakeHandle
from tests.support.fake_scorer import FakeScorer
from tests.support.waiting import until
from vigor_client.weight_format.writes import Copy, VerifiedWrite
from vigor_service.cluster.engines import ClusterEngines, Limits
from vigor_service.cluster.packing import Chunk, PackedWrite
from vigor_service.engine.sequences import NORM_AND_SIGNALS, TokenSequence
from vigor_service.scheduling.engine_pool import EngineLostError
from vigor_service.weights.verification.fingerprint import initial_weights
from vigor_service.weights.version import Weights

SEQUENCE = TokenSequence((1,), (2, 3))


class Bench:
    """A pool, all the engines that it has started, and the chunks that it has stored."""

    def __init__(self, *, seconds: float = 5.0) -> None:
        self.mirror = FakeScorer()
        self.handles: list[FakeHandle] = []
        self.stored: list[Chunk] = []
        self.plant: Callable[[FakeHandle], None] = lambda _: None
        self.weights = initial_weights(self.mirror)
        limits = Limits(loading=seconds, computing=seconds, weights=seconds)
        self.engines = ClusterEngines(
            self.spawn, self.put, self.mirror, self.weights, num_engines=1, limits=limits, first_pause=0.01
        )

    def spawn(self, _number: int) -> FakeHandle:
        handle = FakeHandle()
        self.plant(handle)
        self.handles.append(handle)
        return handle

    def put(self, chunk: Chunk) -> Chunk:
        self.stored.append(chunk)
        return chunk

    async def have(self, num_engines: int) -> None:
        await until(lambda: self.engines.num_engines == num_engines)

    def next_weights(self) -> tuple[Weights, list[tuple[str, VerifiedWrite]]]:
        """Weights one larger in the norm, as an update brings them."""
        changed = FakeScorer()
        changed.parameters = {name: tensor.clone() for name, tensor in self.mirror.parameters.items()}
        changed.parameters["norm.weight"] += 1
        self.weights = replace(initial_weights(changed), version=self.weights.version + 1)
        return self.weights, [("norm.weight", Copy(changed.parameters["norm.weight"]))]

    async def publish(self) -> None:
        weights, writes = self.next_weights()
        await self.engines.stage(weights, writes)
        await self.engines.load(weights, writes)

    def digests(self) -> Iterator[str]:
        return (handle.actor.digest() for handle in self.handles if not handle.ended.is_set())


def run(test: Callable[[Bench], Awaitable[None]], *, seconds: float = 5.0, kind: type[Bench] = Bench) -> None:
    async def all_of_it() -> None:
        bench = kind(seconds=seconds)
        async with asyncio.timeout(20):
            await test(bench)
            await bench.engines.close()
        assert all(handle.ended.is_set() for handle in bench.handles)

    asyncio.run(all_of_it())


def test_engines_join_with_the_published_weights_and_score() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(2)
        await bench.have(2)
        result = await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)
        assert result.scores == bench.mirror.score([SEQUENCE]).scores
        assert (await bench.engines.attribute(SEQUENCE)).grad_norm == result.scores[0].grad_norm
        assert bench.stored == [], "they have them already"

    run(test)


def test_an_engine_with_other_weights_gets_the_published_ones_before_it_gets_work() -> None:
    async def test(bench: Bench) -> None:
        def plant(handle: FakeHandle) -> None:
            handle.scorer.parameters["norm.weight"] += 1

        bench.plant = plant
        bench.engines.scale(2)
        await bench.have(2)
        assert set(bench.digests()) == {bench.weights.digest}
        assert len(bench.stored) == 1, "stored once for both"

    run(test)


def test_an_engine_that_measures_something_else_is_refused_and_replaced() -> None:
    async def test(bench: Bench) -> None:
        def plant(handle: FakeHandle) -> None:
            if len(bench.handles) == 1:
                handle.info = replace(handle.info, dtype="bfloat16")

        bench.plant = plant
        await bench.engines.start()
        bench.engines.scale(2)
        await bench.have(2)
        assert [handle.ended.is_set() for handle in bench.handles] == [False, True, False]

    run(test)


def test_an_update_is_staged_beside_batches_and_reaches_all_engines() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(3)
        await bench.have(3)
        before = set(bench.digests())
        weights, writes = bench.next_weights()
        await bench.engines.stage(weights, writes)
        assert set(bench.digests()) == before
        await bench.engines.load(weights, writes)
        assert set(bench.digests()) == {weights.digest}
        assert bench.mirror.parameters["norm.weight"].equal(bench.handles[0].scorer.parameters["norm.weight"])
        assert len(bench.stored) == 1

    run(test)


def test_an_engine_that_cannot_take_weights_is_replaced_and_never_serves_the_old_ones() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(2)
        await bench.have(2)
        for call in ("stage", "switch"):
            failing = bench.handles[-1]
            failing.dies = {call}
            await bench.publish()
            assert failing.ended.is_set()
            assert bench.engines.num_engines == 1
            await bench.have(2)
            assert set(bench.digests()) == {bench.weights.digest}

    run(test)


def test_an_engine_that_joins_between_stage_and_switch_takes_all_of_the_weights() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        weights, writes = bench.next_weights()
        await bench.engines.stage(weights, writes)
        bench.engines.scale(2)
        await bench.have(2)
        await bench.engines.load(weights, writes)
        assert bench.engines.num_engines == 2
        assert list(bench.digests()) == [weights.digest] * 2

    run(test)


def test_an_engine_that_ends_in_a_batch_or_beside_one_is_replaced() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        bench.handles[0].dies = {"score"}
        with pytest.raises(EngineLostError, match=r"^engine 0 the process ended$"):
            await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)
        assert bench.engines.num_engines == 0
        await bench.have(1)
        bench.handles[1].ended.set()
        await bench.have(0)
        await bench.have(1)
        assert len(bench.handles) == 3
        assert (await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)).scores

    run(test)


def test_an_engine_that_does_not_answer_is_killed_and_replaced() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        bench.handles[0].hangs = {"score"}
        with pytest.raises(EngineLostError, match=r"^engine 0 did not answer within 0.2 s$"):
            await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)
        await bench.have(1)
        assert bench.handles[0].ended.is_set()

    run(test, seconds=0.2)


def test_an_error_of_the_engine_is_its_callers_and_the_engine_stays() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        bench.handles[0].scorer.fail_scoring = RuntimeError("no")
        with pytest.raises(RuntimeError, match=r"^no$"):
            await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)
        bench.handles[0].scorer.fail_scoring = None
        assert (await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)).scores
        assert len(bench.handles) == 1

    run(test)


def test_engines_come_and_go_as_it_is_scaled() -> None:
    async def test(bench: Bench) -> None:
        told: list[int] = []
        bench.engines.on_change = lambda: told.append(bench.engines.num_engines)
        for num_engines in (3, 1, 2):
            bench.engines.scale(num_engines)
            await bench.have(num_engines)
        assert told == [1, 2, 3, 2]
        assert sum(not handle.ended.is_set() for handle in bench.handles) == 2

    run(test)


def test_an_engine_that_is_not_wanted_any_more_ends_behind_what_it_computes() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        may_answer = bench.handles[0].waits["score"] = asyncio.Event()
        scoring = asyncio.ensure_future(bench.engines.score([SEQUENCE], NORM_AND_SIGNALS))
        await until(lambda: not bench.handles[0].ended.is_set() and bench.engines.statuses()[0].busy_seconds > 0)
        bench.engines.scale(0)
        await asyncio.sleep(0.01)
        assert bench.engines.num_engines == 1, "it still computes"
        may_answer.set()
        assert (await scoring).scores
        await until(bench.handles[0].ended.is_set)
        assert bench.engines.num_engines == 0

    run(test)


def test_a_pool_that_closes_ends_engines_whatever_they_compute() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        bench.handles[0].hangs = {"score"}
        scoring = asyncio.ensure_future(bench.engines.score([SEQUENCE], NORM_AND_SIGNALS))
        await until(lambda: bench.engines.statuses()[0].num_batches == 1)
        await bench.engines.close()
        with pytest.raises(EngineLostError):
            await scoring

    run(test)


def test_it_says_what_each_engine_has_done() -> None:
    async def test(bench: Bench) -> None:
        for num_engines in (1, 2):  # one after the other: the first is free first
            bench.engines.scale(num_engines)
            await bench.have(num_engines)
        bench.handles[0].dies = {"score"}
        with pytest.raises(EngineLostError):
            await bench.engines.score([SEQUENCE], NORM_AND_SIGNALS)
        [lost, other] = bench.engines.statuses()
        assert (lost.number, lost.is_up, lost.weight_version, lost.num_batches) == (0, False, None, 1)
        assert (other.number, other.is_up, other.weight_version, other.num_batches) == (1, True, 0, 0)
        await bench.have(2)
        await bench.publish()
        [replaced, _] = bench.engines.statuses()
        assert (replaced.is_up, replaced.weight_version, replaced.num_batches, replaced.num_restarts) == (True, 1, 1, 1)
        assert replaced.busy_seconds > 0

    run(test)


def test_the_mirrors_values_are_those_that_a_joining_engine_gets() -> None:
    async def test(bench: Bench) -> None:
        bench.engines.scale(1)
        await bench.have(1)
        await bench.publish()
        bench.engines.scale(2)
        await bench.have(2)
        first, second = (handle.scorer.parameters for handle in bench.handles)
        assert all(torch.equal(first[name], second[name]) for name in first)

    run(test)


class StoredChunk(list[PackedWrite]):
    """A chunk that the store holds as long as something refers to it."""


class CountingBench(Bench):
    """Counts the bytes of the chunks that are in the store at once."""

    num_bytes = 0
    peak_bytes = 0

    def put(self, chunk: Chunk) -> Chunk:
        stored, num_bytes = StoredChunk(chunk), sum(write.num_bytes for write in chunk)
        self.num_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)
        weakref.finalize(stored, self._free, num_bytes)
        return stored

    def _free(self, num_bytes: int) -> None:
        self.num_bytes -= num_bytes

    def next_weights(self) -> tuple[Weights, list[tuple[str, VerifiedWrite]]]:
        """All tensors anew, as a full update brings them."""
        changed = {name: tensor + 1 for name, tensor in self.mirror.parameters.items()}
        scorer = FakeScorer()
        scorer.parameters = changed
        self.weights = replace(initial_weights(scorer), version=self.weights.version + 1)
        return self.weights, [(name, Copy(tensor)) for name, tensor in changed.items()]


def test_the_store_holds_no_more_than_an_update_and_the_published_weights() -> None:
    async def test(bench: Bench) -> None:
        assert isinstance(bench, CountingBench)
        bench.engines.scale(2)
        await bench.have(2)
        for _ in range(3):
            await bench.publish()
            bench.handles[-1].kill()  # what takes its place gets the published weights
            await until(lambda: len(bench.handles) > 2)
            await bench.have(2)
        assert bench.peak_bytes == 2 * bench.weights.num_bytes

    run(test, kind=CountingBench)
