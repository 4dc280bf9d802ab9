"""Several processes that are one engine: called as one, and lost as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.fake_handle import FakeHandle
from vigor_service.cluster.packing import Chunk
from vigor_service.cluster.shards import ShardedHandle
from vigor_service.engine.sequences import NORM_AND_SIGNALS, TokenSequence
from vigor_service.scheduling.engine_pool import EngineLostError

SEQUENCE = TokenSequence((1,), (2, 3))


class Bench:
    """An engine of two ranks."""

    def __init__(self) -> None:
        self.ranks = [FakeHandle(), FakeHandle()]
        self.num_released = 0
        self.engine: ShardedHandle[Chunk] = ShardedHandle(self.ranks, self._release)

    def _release(self) -> None:
        self.num_released += 1


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(20):
            await test(Bench())

    asyncio.run(all_of_it())


def test_every_rank_gets_each_call_and_one_answer_counts() -> None:
    async def test(bench: Bench) -> None:
        result = await bench.engine.score([SEQUENCE], NORM_AND_SIGNALS)
        assert result.scores == bench.ranks[0].scorer.score([SEQUENCE]).scores
        assert await bench.engine.describe() == bench.ranks[0].info
        assert await bench.engine.digest() == bench.ranks[1].actor.digest()
        assert await bench.engine.measure_batch_tokens() == bench.ranks[0].scorer.measure_batch_tokens()
        await bench.engine.stage(1, [])
        await bench.engine.switch(1)

    run(test)


def test_a_rank_that_ends_is_the_end_of_the_engine_while_the_others_hang() -> None:
    async def test(bench: Bench) -> None:
        bench.ranks[0].hangs, bench.ranks[1].dies = {"score"}, {"score"}
        life = asyncio.ensure_future(bench.engine.live())
        with pytest.raises(EngineLostError, match="the process ended"):
            await bench.engine.score([SEQUENCE], NORM_AND_SIGNALS)
        with pytest.raises(EngineLostError):
            await life
        bench.engine.kill()
        assert all(rank.ended.is_set() for rank in bench.ranks)
        assert bench.num_released == 1

    run(test)


def test_an_error_of_all_ranks_is_the_callers_and_that_of_some_the_end() -> None:
    async def test(bench: Bench) -> None:
        for rank in bench.ranks:
            rank.scorer.fail_scoring = RuntimeError("no")
        with pytest.raises(RuntimeError, match=r"^no$"):
            await bench.engine.score([SEQUENCE], NORM_AND_SIGNALS)
        bench.ranks[0].scorer.fail_scoring = None
        with pytest.raises(EngineLostError, match=r"^failed in 1 of 2 ranks: no$"):
            await bench.engine.score([SEQUENCE], NORM_AND_SIGNALS)

    run(test)
