"""The weights that are served, the requests that wait for other weights, and the swap. Knows no files and no queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from vigor_client.schemas.weights import UpdateProgress, WeightsInfo, WeightState
from vigor_service.errors import DrainingError, WeightsApplyingError, WeightsPoisonedError
from vigor_service.observability.metrics import Metrics
from vigor_service.weights.version import WeightRequirement, Weights

if TYPE_CHECKING:
    from vigor_client.weight_format.writes import VerifiedWrite

    Load: TypeAlias = Callable[[Weights, Iterable[tuple[str, VerifiedWrite]]], Awaitable[None]]

_logger = logging.getLogger(__name__)

POISONED_RETRY_SECONDS = 5.0
APPLYING_RETRY_SECONDS = 1.0


class _Change(asyncio.Event):
    """Event that is set when other weights are served, the swap to ``failed`` has failed, or the service drains."""

    failed: Weights | None = None


class CurrentWeights:
    """The weights that are served. Every change wakes the requests that wait for weights.

    With ``damage`` the model holds weights that must not be served, so the state is ``poisoned`` from the start.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        load: Load,
        metrics: Metrics,
        damage: str | None = None,
    ) -> None:
        self.weights = weights
        self.state: WeightState = "ready" if damage is None else "poisoned"
        self._poisoned_because = damage
        self._load = load
        self._metrics = metrics
        self._changed = _Change()
        self._draining = False
        metrics.observe_publication(weights.version, weights.published_at)
        metrics.observe_weight_state(self.state)

    def require(self, requirement: WeightRequirement) -> Weights:
        """Return the weights that are served, if they meet the requirement.

        Raises:
            WeightsPoisonedError: the model holds a mixture of weights, or damaged ones; nothing can be scored.
            WeightVersionMismatchError, WeightDigestMismatchError: other weights are served.
        """
        if self.state == "poisoned":
            raise WeightsPoisonedError(
                f"{self._poisoned_because}; nothing is scored until a full update is committed",
                retry_after_seconds=POISONED_RETRY_SECONDS,
            )
        if (unmet := requirement.unmet_by(self.weights)) is not None:
            raise unmet
        return self.weights

    def require_ready(self) -> None:
        """Raise WeightsPoisonedError or WeightsApplyingError if the weights are unusable or are being swapped."""
        self.require(WeightRequirement())
        if self.state == "applying":
            raise WeightsApplyingError("weights are being swapped", retry_after_seconds=APPLYING_RETRY_SECONDS)

    async def wait_for(self, requirement: WeightRequirement, *, wait_seconds: float) -> None:
        """Return once the requirement is met; after ``wait_seconds`` raise as `require` does.

        Raises:
            DrainingError: the service shuts down before that.
            WeightsPoisonedError: the swap to the required weights failed; the message says why.
        """
        started = perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                while not self._is_met(requirement):
                    await self._wait_for_change(requirement)
        self.require(requirement)
        if requirement != WeightRequirement():
            self._metrics.weight_wait_seconds.observe(perf_counter() - started)

    async def swap(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Write verified values into the model and serve them as ``weights``. The caller makes sure that no batch runs.

        Raises:
            WeightsPoisonedError: the engine failed while loading; the model may hold a mixture of weights.
        """
        self._enter("applying")
        loading = asyncio.ensure_future(self._load(weights, writes))
        await asyncio.wait([loading])
        if (error := loading.exception()) is not None:
            self._poison(weights, error)
        self.weights = replace(weights, published_at=datetime.now(UTC))
        self._enter("ready")
        self._metrics.observe_publication(weights.version, self.weights.published_at)
        _logger.info("weights_published", extra={"version": weights.version, "digest": weights.digest})
        self._wake_waiters()

    def drain(self) -> None:
        """Refuse to wait for other weights from now on, also for requests that are already waiting."""
        self._draining = True
        self._wake_waiters()

    def info(self, update: UpdateProgress | None) -> WeightsInfo:
        """Return what ``GET /v1/weights`` answers while this update is under way."""
        return WeightsInfo(
            weight_version=self.weights.version,
            weight_digest=self.weights.digest,
            state=self.state,
            num_tensors=len(self.weights.tensors),
            num_bytes=self.weights.num_bytes,
            dtype=self.weights.dtype,
            published_at=self.weights.published_at.isoformat(),
            update=update,
        )

    def _is_met(self, requirement: WeightRequirement) -> bool:
        return self.state != "poisoned" and requirement.unmet_by(self.weights) is None

    def _enter(self, state: WeightState) -> None:
        self.state = state
        self._metrics.observe_weight_state(state)

    async def _wait_for_change(self, requirement: WeightRequirement) -> None:
        if self._draining:
            raise DrainingError(
                "the service is shutting down before these weights are published", retry_after_seconds=1.0
            )
        changed = self._changed
        await changed.wait()
        if changed.failed is not None and requirement.unmet_by(changed.failed) is None and self.state == "poisoned":
            self.require(requirement)

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = _Change()

    def _poison(self, weights: Weights, error: BaseException) -> None:
        self._enter("poisoned")
        self._poisoned_because = f"the swap to version {weights.version} failed half-way ({type(error).__name__})"
        _logger.error("weights_poisoned", exc_info=error, extra={"version": weights.version})
        self._changed.failed = weights
        self._wake_waiters()
        raise WeightsPoisonedError(f"{self._poisoned_because}; send a full update") from error
