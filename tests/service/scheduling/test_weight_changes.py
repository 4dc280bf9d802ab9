"""The scheduler while weights change: scores of a request come from one version."""

from __future__ import annotations

import asyncio

import pytest

from tests.service.scheduling.bench import ANY, Bench, run, sequence
from vigor_service.errors import WeightsPoisonedError, WeightVersionMismatchError
from vigor_service.weights.version import WeightRequirement


def test_a_barrier_waits_for_what_came_before_and_holds_what_comes_after() -> None:
    async def test(bench: Bench) -> None:
        events: list[str] = []

        async def score(name: str, marker: int) -> None:
            await bench.scheduler.score([sequence(n, prompt=marker) for n in range(4)], ANY)
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

    bench = run(test, max_batch_tokens=4)
    assert all(len({item.prompt_ids for item in batch}) == 1 for batch in bench.scorer.batches)


def test_all_scores_of_a_request_come_from_one_version() -> None:
    async def test(bench: Bench) -> None:
        sequences = [sequence(n) for n in range(8)]
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

    run(test, max_batch_tokens=4)


def test_a_cancelled_barrier_does_not_stop_the_queue() -> None:
    async def test(bench: Bench) -> None:
        async def swap() -> None:
            async with bench.scheduler.exclusive():
                raise AssertionError("it was cancelled before")

        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([sequence(1)], ANY))
        await bench.held()
        swapping = asyncio.ensure_future(swap())
        await asyncio.sleep(0)
        swapping.cancel()
        bench.scorer.gate.set()
        await running
        await bench.scheduler.score([sequence(2)], ANY)

    run(test)


def test_a_failure_behind_a_barrier_goes_to_who_asked_and_the_queue_goes_on() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(ArithmeticError):
            async with bench.scheduler.exclusive():
                raise ArithmeticError
        await bench.scheduler.score([sequence(2)], ANY)

    run(test)


def test_the_requirement_is_checked_when_the_turn_has_come() -> None:
    async def test(bench: Bench) -> None:
        bench.scorer.gate.clear()
        running = asyncio.ensure_future(bench.scheduler.score([sequence(1)], WeightRequirement(version=0)))
        await bench.held()

        async def poison() -> None:
            async with bench.scheduler.exclusive():
                bench.current_weights.state = "poisoned"

        poisoning = asyncio.ensure_future(poison())
        await asyncio.sleep(0)
        late = asyncio.ensure_future(bench.scheduler.score([sequence(2)], WeightRequirement(version=0)))
        bench.scorer.gate.set()
        await asyncio.gather(running, poisoning)
        with pytest.raises(WeightsPoisonedError):
            await late
        bench.current_weights.state = "ready"
        with pytest.raises(WeightVersionMismatchError):
            await bench.scheduler.score([sequence(2)], WeightRequirement(version=1))

    bench = run(test)
    assert bench.scorer.batches == [[sequence(1)]]
