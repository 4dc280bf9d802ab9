"""The interface between the scheduler and the engines, and the pool of one local engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from vigor_service.engine.sequences import ScoreParts, TokenSequence
from vigor_service.errors import EnginesFixedError
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.threads.worker import WorkerThread

if TYPE_CHECKING:
    from vigor_client.weight_format.writes import VerifiedWrite
    from vigor_service.engine.interface import Attribution, BatchResult, Scorer
    from vigor_service.weights.version import Weights


class EngineLostError(Exception):
    """An engine ended during a batch. No part of the batch was answered, so another engine may compute it."""


class EnginePool(Protocol):
    """Engines that hold the same weights. Each computes one thing at a time.

    ``on_change`` is called on the event loop when an engine has joined.
    """

    on_change: Callable[[], None]

    async def start(self) -> None:
        """Start the engines, and return when the first one can compute.

        Raises:
            StartupError: no engine will ever be able to; the message says why.
        """
        ...

    async def close(self) -> None:
        """End the engines that the pool started at once, without waiting for what they compute."""
        ...

    async def measure_batch_tokens(self) -> int:
        """Measure on a free engine how many tokens a batch may have."""
        ...

    @property
    def num_engines(self) -> int:
        """Number of engines that accept batches at present, including those that are computing one."""
        ...

    @property
    def num_ahead(self) -> int:
        """Number of batches that the pool accepts while all engines are busy, to be computed next."""
        ...

    def statuses(self) -> Sequence[EngineStatus]:
        """Return the status of each engine, including engines that are being started."""
        ...

    def scale(self, num_engines: int) -> None:
        """Set the number of engines: start more, or end those with the highest numbers after their current work.

        Raises:
            EnginesFixedError: this pool cannot have another number.
        """
        ...

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch on a free engine. The caller submits at most ``num_engines + num_ahead`` batches at once.

        Raises:
            EngineLostError: the engine ended.
            Exception: the engine raised it.
        """
        ...

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return the shares of a norm by token and layer, from a free engine. Raises as ``Scorer.attribute``."""
        ...

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Send verified values to every engine, while it computes with its current weights."""
        ...

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Write verified values into the model of every engine, which then holds ``weights``. No batch may run."""
        ...


class LocalEngine:
    """The pool of one engine: a scorer that runs on the compute thread."""

    num_engines = 1
    num_ahead = 1  # it waits on the compute thread

    def __init__(self, scorer: Scorer, compute: WorkerThread, weights: Weights) -> None:
        self._scorer = scorer
        self._compute = compute
        self._weight_version = weights.version
        self._num_batches = 0
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Do nothing: the scorer is already loaded."""

    async def close(self) -> None:
        """Do nothing: the compute thread does not belong to the pool."""

    async def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have."""
        return await self._compute.run(self._scorer.measure_batch_tokens)

    def statuses(self) -> Sequence[EngineStatus]:
        """Return the engine's status. Its busy time includes weight swaps."""
        return [
            EngineStatus(
                number=0,
                is_up=True,
                weight_version=self._weight_version,
                busy_seconds=self._compute.total_busy_seconds,
                num_batches=self._num_batches,
                num_restarts=0,
            )
        ]

    def scale(self, num_engines: int) -> None:
        """Refuse any number but one.

        Raises:
            EnginesFixedError: ``num_engines`` is not one.
        """
        if num_engines != 1:
            raise EnginesFixedError(
                "this service computes in its own process; to scale it, start it with --engines 2 or --ray-address"
            )

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch."""
        self._num_batches += 1
        return await self._compute.run(self._scorer.score, sequences, parts)

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return the shares of a gradient norm by token and by layer."""
        return await self._compute.run(self._scorer.attribute, sequence)

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Do nothing: ``load`` reads the values directly."""

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Write verified values into the model."""
        await self._compute.run(self._scorer.load, writes)
        self._weight_version = weights.version
