"""The real `vigor-service` whose batches take a fixed time: `python -m tests.support.paced_service SECONDS …`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import vigor_service.__main__ as program
from tests.support.fake_scorer import FakeScorer
from tests.support.tiny_models import tiny_tokenizer
from vigor_service.engine.interface import BatchResult
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence
from vigor_service.observability.logs import configure_logging
from vigor_service.runtime import LoadedModel
from vigor_service.server import serve


class PacedScorer(FakeScorer):
    """Takes as long for every batch, as a GPU does for small ones."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        time.sleep(self._seconds)
        result = super().score(sequences, parts)
        self.batches.clear()  # or memory would grow with every batch
        self.parts.clear()
        return result


if __name__ == "__main__":
    seconds = float(sys.argv.pop(1))
    settings = program._read_settings()
    configure_logging("INFO", "text")
    serve(settings, lambda: LoadedModel(PacedScorer(seconds), tiny_tokenizer()))  # pyright: ignore[reportArgumentType] - see __main__
