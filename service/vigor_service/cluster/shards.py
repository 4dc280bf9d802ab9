"""One engine made of several processes: the service calls it as one engine, and loses it as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from vigor_service.cluster.member import EngineHandle, StoredIn
from vigor_service.scheduling.engine_pool import EngineLostError

if TYPE_CHECKING:
    from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo
    from vigor_service.engine.sequences import ScoreParts, TokenSequence

R = TypeVar("R")


class ShardedHandle(Generic[StoredIn]):
    """Implements `EngineHandle`. Every rank receives each call, in the same order, and all return the same result.

    ``release`` frees the resources that the processes share. It is called once they have been ended.
    """

    def __init__(self, ranks: Sequence[EngineHandle[StoredIn]], release: Callable[[], None] = lambda: None) -> None:
        self._ranks = ranks
        self._release = release

    async def live(self) -> None:
        """Wait until one of the processes ends."""
        await asyncio.gather(*(rank.live() for rank in self._ranks))

    async def describe(self) -> EngineInfo:
        """Return what the engine measures, once all ranks have loaded."""
        return await self._on_all(lambda rank: rank.describe())

    async def digest(self) -> str:
        """Return the digest of the weights, which the ranks gather tensor by tensor."""
        return await self._on_all(lambda rank: rank.digest())

    async def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have."""
        return await self._on_all(lambda rank: rank.measure_batch_tokens())

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch, of which each rank computes a share."""
        return await self._on_all(lambda rank: rank.score(sequences, parts))

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return the shares of a gradient norm by token and by layer."""
        return await self._on_all(lambda rank: rank.attribute(sequence))

    async def stage(self, version: int, chunks: Sequence[StoredIn]) -> None:
        """Send every rank the writes that make the next weights."""
        await self._on_all(lambda rank: rank.stage(version, chunks))

    async def switch(self, version: int) -> None:
        """Have every rank apply its part of the staged writes."""
        await self._on_all(lambda rank: rank.switch(version))

    def kill(self) -> None:
        """End all of the processes."""
        for rank in self._ranks:
            rank.kill()
        self._release()

    async def _on_all(self, call: Callable[[EngineHandle[StoredIn]], Awaitable[R]]) -> R:
        """Return the first rank's answer, once all have answered.

        Raises:
            EngineLostError: a process ended, or only some of the ranks raised: they no longer run in step.
            Exception: all ranks raised; this is the first rank's error.
        """
        answers = await asyncio.gather(*(_answer(call(rank)) for rank in self._ranks))
        errors = [error for _, error in answers if error is not None]
        if errors and len(errors) < len(answers):
            raise EngineLostError(f"failed in {len(errors)} of {len(answers)} ranks: {errors[0]}")
        if errors:
            raise errors[0]
        return answers[0][0]  # pyright: ignore[reportReturnType] - without an error it is a result


async def _answer(call: Awaitable[R]) -> tuple[R | None, Exception | None]:
    """Return a rank's result, or the error that it raised.

    EngineLostError is raised at once instead, because other ranks may wait for the one that ended.
    """
    try:
        return await call, None
    except EngineLostError:
        raise
    except Exception as error:  # noqa: BLE001 - `_on_all` raises it, once it knows whether all ranks failed
        return None, error
