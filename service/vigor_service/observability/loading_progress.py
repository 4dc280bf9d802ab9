"""The service's current phase of loading, and its duration. Knows nothing about models or HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from time import monotonic

_logger = logging.getLogger(__name__)


class LoadingPhase(StrEnum):
    """The phases before the service is ready, in this order."""

    IMPORTING_LIBRARIES = "importing_libraries"
    READING_MODEL = "reading_model"
    CHECKING_NORMS = "checking_norms"
    HASHING_WEIGHTS = "hashing_weights"
    RESTORING_WEIGHTS = "restoring_weights"
    MEASURING_BATCH_SIZE = "measuring_batch_size"

    @property
    def description(self) -> str:
        """The phase in a few words."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    LoadingPhase.IMPORTING_LIBRARIES: "importing torch and transformers",
    LoadingPhase.READING_MODEL: "reading the model, which is downloaded first if it is not on this machine",
    LoadingPhase.CHECKING_NORMS: "tracing the model and checking its fast norms against the reference",
    LoadingPhase.HASHING_WEIGHTS: "computing the digest of the weights",
    LoadingPhase.RESTORING_WEIGHTS: "restoring the weights that were published last",
    LoadingPhase.MEASURING_BATCH_SIZE: "measuring how many tokens fit into a batch",
}


class LoadingProgress:
    """The current phase. The thread that loads begins phases, and any other thread reads them."""

    def __init__(self, *, clock_seconds: Callable[[], float] = monotonic) -> None:
        self._clock_seconds = clock_seconds
        self._began_at_seconds = clock_seconds()
        # Phase and start are one value, so that a reader never sees one without the other.
        self._current = (LoadingPhase.IMPORTING_LIBRARIES, self._began_at_seconds)

    @property
    def phase(self) -> LoadingPhase:
        """The current phase."""
        return self._current[0]

    @property
    def total_seconds(self) -> float:
        """Seconds since loading began."""
        return self._clock_seconds() - self._began_at_seconds

    def begin(self, phase: LoadingPhase) -> None:
        """Enter a phase, and log it."""
        self._current = (phase, self._clock_seconds())
        _logger.info("loading", extra={"phase": phase, "after_seconds": round(self.total_seconds, 1)})

    def describe(self) -> str:
        """Return one line for a client that has to wait: the phase, and the seconds since it began."""
        phase, since_seconds = self._current
        return f"the model is being loaded: {phase.description} ({self._clock_seconds() - since_seconds:.0f} s so far)"
