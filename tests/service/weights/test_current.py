import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from tests.support.fake_scorer import FakeScorer
from vigor_client.weight_format.writes import Copy
from vigor_service.errors import (
    DrainingError,
    WeightDigestMismatchError,
    WeightsApplyingError,
    WeightsPoisonedError,
    WeightVersionMismatchError,
)
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.engine_pool import LocalEngine
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.verification.fingerprint import initial_weights
from vigor_service.weights.version import WeightRequirement, Weights

OTHER_DIGEST = "xxh3-128:" + "1" * 32


class Bench:
    def __init__(self) -> None:
        self.scorer = FakeScorer()
        self.metrics = Metrics()
        self.compute = WorkerThread("compute")
        self.engine = LocalEngine(self.scorer, self.compute, initial_weights(self.scorer))
        self.current_weights = CurrentWeights(initial_weights(self.scorer), load=self.engine.load, metrics=self.metrics)

    def weights(self, version: int, digest: str = OTHER_DIGEST) -> Weights:
        return replace(self.current_weights.weights, version=version, digest=digest)

    async def swap(self, version: int, digest: str = OTHER_DIGEST) -> None:
        await self.current_weights.swap(
            self.weights(version, digest), ((name, Copy(tensor + 1)) for name, tensor in self.scorer.parameters.items())
        )


def _run(test: Callable[[Bench], Awaitable[None]]) -> Bench:
    async def run() -> Bench:
        bench = Bench()
        async with asyncio.timeout(20):
            await test(bench)
        bench.compute.close()
        return bench

    return asyncio.run(run())


def test_a_swap_loads_on_the_compute_thread_and_serves_the_new_weights() -> None:
    async def test(bench: Bench) -> None:
        before = bench.scorer.parameters["norm.weight"].clone()
        await bench.swap(3)
        assert bench.current_weights.require(WeightRequirement(3, OTHER_DIGEST)).version == 3
        assert bench.current_weights.info(None).state == "ready"
        assert bench.scorer.parameters["norm.weight"].equal(before + 1)

    bench = _run(test)
    assert bench.scorer.thread_names == {"compute_0"}
    assert bench.metrics.registry.get_sample_value("vigor_weight_version") == 3


def test_other_weights_are_refused_with_have_and_want() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(WeightVersionMismatchError) as version:
            bench.current_weights.require(WeightRequirement(5))
        assert version.value.data == {"have": 0, "want": 5}
        with pytest.raises(WeightDigestMismatchError) as digest:
            bench.current_weights.require(WeightRequirement(0, OTHER_DIGEST))
        assert digest.value.data == {"have": bench.current_weights.weights.digest, "want": OTHER_DIGEST}

    _run(test)


def test_a_requirement_that_is_met_is_not_waited_for() -> None:
    async def test(bench: Bench) -> None:
        await bench.current_weights.wait_for(WeightRequirement(0), wait_seconds=0)

    _run(test)


def test_waiting_ends_with_the_mismatch() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(WeightVersionMismatchError):
            await bench.current_weights.wait_for(WeightRequirement(1), wait_seconds=0.01)

    _run(test)


def test_all_who_wait_for_a_version_are_woken_by_it() -> None:
    async def test(bench: Bench) -> None:
        waiting = [
            asyncio.ensure_future(bench.current_weights.wait_for(requirement, wait_seconds=20))
            for requirement in (WeightRequirement(2), WeightRequirement(2, OTHER_DIGEST))
        ]
        await bench.swap(1)
        assert not any(task.done() for task in waiting)
        await bench.swap(2)
        await asyncio.gather(*waiting)

    _run(test)


def test_the_same_version_with_other_bytes_wakes_who_waits_for_its_digest() -> None:
    async def test(bench: Bench) -> None:
        waiting = asyncio.ensure_future(
            bench.current_weights.wait_for(WeightRequirement(0, OTHER_DIGEST), wait_seconds=20)
        )
        await asyncio.sleep(0)
        await bench.swap(0)
        await waiting

    _run(test)


def test_a_swap_that_fails_poisons_until_a_full_update_lands() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fail_loading = RuntimeError("the device is gone")
        with pytest.raises(WeightsPoisonedError, match="RuntimeError"):
            await bench.swap(1)
        assert bench.current_weights.info(None).state == "poisoned"
        assert bench.current_weights.weights.version == 0
        with pytest.raises(WeightsPoisonedError) as refused:
            bench.current_weights.require(WeightRequirement())
        assert refused.value.retry_after_seconds
        bench.scorer.fail_loading = None
        await bench.swap(1)
        assert bench.current_weights.require(WeightRequirement(1)).version == 1

    _run(test)


def test_a_swap_that_fails_wakes_those_who_wait_for_its_version_with_the_reason() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.fail_loading = RuntimeError("the device is gone")
        its_version, its_digest, later = (
            asyncio.ensure_future(bench.current_weights.wait_for(requirement, wait_seconds=20))
            for requirement in (WeightRequirement(1), WeightRequirement(digest=OTHER_DIGEST), WeightRequirement(2))
        )
        await asyncio.sleep(0)
        with pytest.raises(WeightsPoisonedError):
            await bench.swap(1)
        for waiting in (its_version, its_digest):
            with pytest.raises(WeightsPoisonedError, match="swap to version 1 failed half-way") as told:
                await waiting
            assert "RuntimeError" in told.value.detail
        assert not later.done()
        bench.scorer.fail_loading = None
        await bench.swap(2)
        await later

    _run(test)


def test_who_waits_while_the_weights_are_poisoned_gets_the_update_that_cures_them() -> None:
    async def test(bench: Bench) -> None:
        bench.current_weights.state = "poisoned"
        waiting = asyncio.ensure_future(bench.current_weights.wait_for(WeightRequirement(0), wait_seconds=20))
        await asyncio.sleep(0)
        await bench.swap(0)
        await waiting

    _run(test)


def test_draining_wakes_who_waits() -> None:
    async def test(bench: Bench) -> None:
        waiting = asyncio.ensure_future(bench.current_weights.wait_for(WeightRequirement(1), wait_seconds=20))
        await asyncio.sleep(0)
        bench.current_weights.drain()
        with pytest.raises(DrainingError):
            await waiting

    _run(test)


def test_it_is_not_ready_while_a_swap_is_applied() -> None:
    async def test(bench: Bench) -> None:
        bench.current_weights.require_ready()
        bench.current_weights.state = "applying"
        with pytest.raises(WeightsApplyingError):
            bench.current_weights.require_ready()

    _run(test)
