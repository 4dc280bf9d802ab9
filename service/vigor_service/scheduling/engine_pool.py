"""Where batches are computed: the seam between the scheduler and the engines, and the pool of one engine."""

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
    """An engine ended during a batch. Nothing of the batch was answered: it may be computed elsewhere."""


class EnginePool(Protocol):
    """Engines that hold the same weights. Each computes one thing at a time.

    ``on_change`` is called when an engine has come, on the loop.
    """

    on_change: Callable[[], None]

    async def start(self) -> None:
        """Return when one engine can compute.

        Raises:
            StartupError: none ever will; says why.
        """
        ...

    async def close(self) -> None:
        """End the engines that were started, whatever they compute."""
        ...

    async def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have, on an engine that is free."""
        ...

    @property
    def num_engines(self) -> int:
        """Engines that take batches at this moment, those that compute one included."""
        ...

    @property
    def num_ahead(self) -> int:
        """Batches that it takes while all engines compute, to be computed next."""
        ...

    def statuses(self) -> Sequence[EngineStatus]:
        """Say what each engine has done, those that are being started included."""
        ...

    def scale(self, num_engines: int) -> None:
        """Have this many engines: more are started, and those with the highest numbers end behind what they compute.

        Raises:
            EnginesFixedError: this pool cannot have another number.
        """
        ...

    async def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch on an engine that is free; the caller runs no more than ``num_engines + num_ahead``.

        Raises:
            EngineLostError: the engine ended.
            Exception: the engine's own.
        """
        ...

    async def attribute(self, sequence: TokenSequence) -> Attribution:
        """Say where a gradient norm comes from, on an engine that is free. Raises as ``Scorer.attribute``."""
        ...

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Bring verified values near to every engine, while it computes with the weights that it has."""
        ...

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Write verified values into the model of every engine, which is ``weights`` then; no batch runs meanwhile."""
        ...


class LocalEngine:
    """The pool of one engine: a scorer, on the compute thread."""

    num_engines = 1
    num_ahead = 1  # it waits on the compute thread

    def __init__(self, scorer: Scorer, compute: WorkerThread, weights: Weights) -> None:
        self._scorer = scorer
        self._compute = compute
        self._weight_version = weights.version
        self._num_batches = 0
        self.on_change: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Do nothing: the scorer is there."""

    async def close(self) -> None:
        """Do nothing: the thread is not the pool's own."""

    async def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have."""
        return await self._compute.run(self._scorer.measure_batch_tokens)

    def statuses(self) -> Sequence[EngineStatus]:
        """Say what the engine has done. A swap of weights is work as well."""
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
            EnginesFixedError: it is not one.
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
        """Say where a gradient norm comes from."""
        return await self._compute.run(self._scorer.attribute, sequence)

    async def stage(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Do nothing: the model reads the values where they are."""

    async def load(self, weights: Weights, writes: Iterable[tuple[str, VerifiedWrite]]) -> None:
        """Write verified values into the model."""
        await self._compute.run(self._scorer.load, writes)
        self._weight_version = weights.version
