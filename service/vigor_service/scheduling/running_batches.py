"""The batches on the engines: when each one began, and when the next one is needed.

A pool that accepts a batch ahead gets it shortly before an engine is expected to finish, so that the engine continues
without a pause. It does not get the batch earlier, because requests that arrive until then can still be part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_service.engine.sequences import ScoreParts
from vigor_service.scheduling.engine_pool import EnginePool
from vigor_service.scheduling.jobs import Batch

if TYPE_CHECKING:
    from vigor_service.engine.interface import BatchResult

EARLY_SECONDS = 0.02
"""Seconds before the expected end of a batch at which the next one is formed; forming it takes less than this."""


@dataclass(slots=True, eq=False)
class RunningBatch:
    """A batch that was handed to the pool. It is "ahead" until an engine begins to compute it, at ``began_at``."""

    batch: Batch
    parts: ScoreParts
    scoring: asyncio.Future[BatchResult]
    num_tokens: int = field(init=False)
    began_at: float | None = None
    is_ending: bool = False
    is_dropped: bool = False
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.num_tokens = sum(sequence.num_tokens for sequence in self.batch)


class RunningBatches:
    """The batches that were handed to the pool and have not ended, in this order.

    ``expected_seconds`` returns the duration of a batch with this many tokens, or None if it is not known yet.
    ``on_begin`` is called when an engine begins a batch. ``on_ending`` is called shortly before the batch is expected
    to end, if the pool accepts a batch ahead.
    """

    def __init__(
        self,
        engines: EnginePool,
        expected_seconds: Callable[[int], float | None],
        *,
        on_begin: Callable[[RunningBatch], None],
        on_ending: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._expected_seconds = expected_seconds
        self._on_begin = on_begin
        self._on_ending = on_ending
        self._batches: list[RunningBatch] = []

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_wanted(self) -> int:
        """Number of batches that may be handed over now: one for each engine that is free or about to be free."""
        num_ending = sum(batch.is_ending for batch in self._batches)
        return self._engines.num_engines + min(num_ending, self._engines.num_ahead) - len(self._batches)

    @property
    def ahead(self) -> Sequence[RunningBatch]:
        """The batches that no engine has begun to compute."""
        return [batch for batch in self._batches if batch.began_at is None and not batch.is_dropped]

    def add(self, batch: RunningBatch) -> None:
        """Add a batch that is handed to the pool."""
        self._batches.append(batch)
        self._begin_next()

    def end(self, batch: RunningBatch) -> float:
        """Remove a batch that ended, and mark the batch ahead as begun. Return the engine seconds that it took."""
        now = perf_counter()
        seconds = (now - (batch.began_at or now)) / max(1, sum(each.began_at is not None for each in self._batches))
        self._batches.remove(batch)
        if batch.timer is not None:
            batch.timer.cancel()
        self._begin_next()
        return seconds

    def _begin_next(self) -> None:
        for batch in self._batches[: self._engines.num_engines]:
            if batch.began_at is None:
                self._begin(batch)

    def _begin(self, batch: RunningBatch) -> None:
        batch.began_at = perf_counter()
        seconds = self._expected_seconds(batch.num_tokens)
        if seconds is not None and self._engines.num_ahead:
            batch.timer = asyncio.get_running_loop().call_later(seconds - EARLY_SECONDS, self._is_ending, batch)
        self._on_begin(batch)

    def _is_ending(self, batch: RunningBatch) -> None:
        batch.is_ending = True
        self._on_ending()
