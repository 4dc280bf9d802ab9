"""Commits an update: its files are verified and stored while batches run, and swapped in between two batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_client.schemas.weights import CommitResponse
from vigor_service.errors import ServiceError
from vigor_service.observability.metrics import Metrics
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.storage.state import StateDirectory, UpdateRecord
from vigor_service.weights.updates.lifecycle import State
from vigor_service.weights.updates.update import Update
from vigor_service.weights.version import Weights

if TYPE_CHECKING:
    import torch

    from vigor_service.weights.current import Load
    from vigor_service.weights.verification.checkpoint import PlanCheckpoint
    from vigor_service.weights.verification.verify import Verified

_logger = logging.getLogger(__name__)


class Committer:
    """Commits one update at a time.

    ``tensors`` returns the model's own tensors, and ``plan_checkpoint`` maps a checkpoint's tensors to them. ``stage``
    sends new values to the engines while they compute. In the context ``exclusive`` no batch runs. A verified update is
    written to ``state``, if there is one, before the swap, so a process that is killed in the swap restarts with the
    new weights.
    """

    def __init__(
        self,
        current_weights: CurrentWeights,
        *,
        tensors: Callable[[], Mapping[str, torch.Tensor]],
        plan_checkpoint: PlanCheckpoint,
        stage: Load,
        exclusive: Callable[[], AbstractAsyncContextManager[None]],
        state: StateDirectory | None,
        threads: FileThreads,
        metrics: Metrics,
    ) -> None:
        self._current_weights = current_weights
        self._tensors = tensors
        self._plan_checkpoint = plan_checkpoint
        self._stage = stage
        self._exclusive = exclusive
        self._state = state
        self._threads = threads
        self._metrics = metrics

    async def commit(self, update: Update) -> CommitResponse:
        """Verify everything, store it, then swap.

        Raises:
            InvalidRequestError: the update is refused, and the error lists all faults; the old weights stay in service.
            StagingFullError: the update cannot be stored; the old weights stay in service.
            DeadlineExceededError: a disk does not answer; the old weights stay in service. If the disk did store the
                new weights, a restart restores those, and the next update has to be a full one.
            WeightsPoisonedError: the swap failed half-way.
        """
        before = self._current_weights.weights
        started = perf_counter()
        verified = await self._threads.run("verify", self._verify, update, before)
        verify_seconds = self._observe("verify", started)
        after = replace(before, version=update.request.weight_version, digest=verified.digest, tensors=verified.tensors)
        started = perf_counter()
        await self._stage(after, verified.writes())
        self._observe("stage", started)
        await self._store(update, before, verified.digest)
        update.lifecycle.enter(State.APPLYING)
        async with self._exclusive():
            started = perf_counter()
            await self._current_weights.swap(after, verified.writes())
            swap_seconds = self._observe("swap", started)
        return CommitResponse(
            weight_version=after.version,
            weight_digest=after.digest,
            num_changed_tensors=verified.num_changed_tensors,
            verify_seconds=verify_seconds,
            swap_seconds=swap_seconds,
        )

    def _verify(self, update: Update, before: Weights) -> Verified:
        # This module imports torch. It is imported here, so that the socket opens before torch is loaded.
        from vigor_service.weights.verification.verify import verify

        return verify(
            update.paths,
            update.request.encoding,
            before.tensors,
            self._tensors(),
            plan_checkpoint=self._plan_checkpoint,
            base_version=before.version,
            version=update.request.weight_version,
        )

    async def _store(self, update: Update, before: Weights, digest: str) -> None:
        if self._state is None:
            return
        started = perf_counter()
        record = UpdateRecord(
            weight_version=update.request.weight_version,
            weight_digest=digest,
            base_version=before.version,
            base_digest=before.digest,
            encoding=update.request.encoding,
        )
        await self._threads.run("state", self._state.store, record, update.paths)
        self._observe("store", started)

    def _observe(self, phase: str, started: float) -> float:
        seconds = perf_counter() - started
        self._metrics.weight_update_seconds.labels(phase).observe(seconds)
        return seconds


def log_refusal(commit: asyncio.Task[CommitResponse]) -> None:
    """Log why a commit failed, even if its caller has disconnected."""
    error = None if commit.cancelled() else commit.exception()
    if isinstance(error, ServiceError):
        places = "; ".join(f"{'/'.join(map(str, place.loc))} {place.msg}" for place in error.errors[:3])
        _logger.warning("weight_update_refused", extra={"reason": error.detail, "places": places})
