"""One engine as the service's own process sees it: its handle, and whether it is still alive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from vigor_service.cluster.packing import Chunk
from vigor_service.scheduling.engine_pool import EngineLostError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo
    from vigor_service.engine.sequences import ScoreParts, TokenSequence

R = TypeVar("R")
Stored = TypeVar("Stored")
"""Reference to a chunk in the store."""
StoredIn = TypeVar("StoredIn", contravariant=True)


class EngineHandle(Protocol[StoredIn]):
    """An engine in another process. Each call raises EngineLostError when the process ends before it has answered."""

    async def live(self) -> None: ...
    async def describe(self) -> EngineInfo: ...
    async def digest(self) -> str: ...
    async def measure_batch_tokens(self) -> int: ...
    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult: ...
    async def attribute(self, sequence: TokenSequence) -> Attribution: ...
    async def stage(self, version: int, chunks: Sequence[StoredIn]) -> None: ...
    async def switch(self, version: int) -> None: ...
    def kill(self) -> None:
        """End the process at once, without waiting for its work."""
        ...


@dataclass(slots=True)
class Totals:
    """Totals over all engines that have run under one number, one after the other."""

    busy_seconds: float = 0.0
    num_batches: int = 0
    num_restarts: int = 0


@dataclass(eq=False, slots=True)
class Member(Generic[Stored]):
    """An engine of the pool. ``version`` is the version of its weights, ``staged`` the one staged for its next swap."""

    number: int
    handle: EngineHandle[Stored]
    limit_seconds: float
    totals: Totals
    version: int | None = None
    staged: int | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    why_lost: str = ""
    busy_since: float | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def busy_seconds(self) -> float:
        """Seconds for which the current work has been running; 0 if there is none."""
        return 0.0 if (since := self.busy_since) is None else monotonic() - since

    async def call(self, call: Awaitable[R], *, seconds: float | None = None) -> R:
        """Return the result of a call of the handle. An engine that takes longer than the limit is given up as lost.

        Raises:
            EngineLostError: the process ended, or did not answer within the limit.
        """
        limit = self.limit_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(limit):
                return await call
        except TimeoutError as error:
            raise self.lose(f"did not answer within {limit:g} s") from error
        except EngineLostError as error:
            raise self.lose(str(error)) from error

    def lose(self, reason: str) -> EngineLostError:
        """Mark the engine as lost, and return an error that says why."""
        if not self.lost.is_set():
            self.why_lost = reason
            self.lost.set()
        return EngineLostError(f"engine {self.number} {self.why_lost}")

    @asynccontextmanager
    async def busy(self) -> AsyncGenerator[None]:
        """Mark the engine as busy in the context; count a batch and add the time to the totals."""
        self.busy_since = monotonic()
        self.idle.clear()
        self.totals.num_batches += 1
        try:
            yield
        finally:
            self.totals.busy_seconds += self.busy_seconds
            self.busy_since = None
            self.idle.set()


Put = Callable[[Chunk], Stored]
"""Puts a chunk into the store, and returns a reference to it."""
