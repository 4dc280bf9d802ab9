"""One engine in its own process: the class of a Ray actor. It does not import Ray, so it can be called directly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vigor_service.cluster.packing import Chunk, writes_of
from vigor_service.weights.verification.fingerprint import initial_weights

if TYPE_CHECKING:
    from vigor_service.engine.interface import Attribution, BatchResult, EngineInfo, Scorer
    from vigor_service.engine.sequences import ScoreParts, TokenSequence

_logger = logging.getLogger(__name__)


class NothingStagedError(Exception):
    """An engine was told to switch to weights that were not staged on it."""


class EngineActor:
    """The scorer that ``load`` returns for these arguments, and the weights that are staged for its next swap.

    One thread calls ``score``, ``attribute`` and ``switch``; others may call ``stage`` and ``live`` meanwhile.
    """

    def __init__(self, load: Callable[..., Scorer], *arguments: object) -> None:
        self._scorer = load(*arguments)
        self._staged: tuple[int, Sequence[Chunk]] | None = None
        self._ends = threading.Event()

    def live(self) -> None:
        """Block for as long as the process lives. The call fails when the process ends, which tells its caller."""
        self._ends.wait()

    def describe(self) -> EngineInfo:
        """Return what the scorer measures, and how."""
        return self._scorer.info

    def digest(self) -> str:
        """Return the digest of the scorer's weights, computed from their bytes."""
        return initial_weights(self._scorer).digest

    def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have."""
        return self._scorer.measure_batch_tokens()

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts) -> BatchResult:
        """Score one batch."""
        return self._scorer.score(sequences, parts)

    def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return the shares of a gradient norm by token and by layer."""
        return self._scorer.attribute(sequence)

    def stage(self, version: int, *chunks: Chunk) -> None:
        """Keep the packed writes that make this version. The model does not change yet."""
        self._staged = version, chunks

    def switch(self, version: int) -> None:
        """Apply the staged writes to the model.

        Raises:
            NothingStagedError: another version was staged, or none was.
        """
        staged, self._staged = self._staged, None
        if staged is None or staged[0] != version:
            raise NothingStagedError(f"version {version} is not staged")
        self._scorer.load(write for chunk in staged[1] for write in writes_of(chunk))
