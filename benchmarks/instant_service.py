"""A service whose engines compute nothing, to measure its front alone. ``python -m benchmarks.instant_service``.

It takes the service's settings. With ``--engines 1`` the engine is on the compute thread; several engines are actors.
A single engine may have a rate: it sleeps for as long as a batch takes at that rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from time import sleep

from pydantic import Field
from pydantic_settings import CliApp

from tests.support.fake_scorer import FakeScorer
from vigor_service.cluster.engines import ClusterEngines, Limits
from vigor_service.cluster.ray_handles import RayChunk, RayCluster
from vigor_service.engine.interface import BatchResult, EngineInfo
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, SequenceScore, TokenSequence
from vigor_service.observability.loading_progress import LoadingProgress
from vigor_service.observability.logs import configure_logging
from vigor_service.runtime import Loaded, LoadedModel
from vigor_service.server import serve
from vigor_service.settings import Settings
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.version import Weights

PYTHON = ("-m", "benchmarks.instant_service")
"""Arguments of the interpreter that run this service."""
VOCAB_SIZE = 150_000
MAX_SEQUENCE_TOKENS = 32_768
_LIMITS = Limits(loading=60.0, computing=60.0, weights=60.0)
_SCORE = SequenceScore(
    num_loss_tokens=1, grad_norm=1.5, mean_logprob=-1.25, mean_entropy=0.5, self_certainty=2.5, mean_probability=0.25
)


class InstantSettings(Settings):
    """The service's settings, plus the rate of an engine on the compute thread."""

    tokens_per_second: float = Field(default=inf, gt=0)
    """Tokens that the engine computes per second. By default it takes no time."""


class InstantScorer(FakeScorer):
    """Gives every sequence the same numbers, at its rate."""

    def __init__(self, tokens_per_second: float = inf) -> None:
        super().__init__()
        self._tokens_per_second = tokens_per_second

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, vocab_size=VOCAB_SIZE, max_sequence_tokens=MAX_SEQUENCE_TOKENS)

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:  # noqa: ARG002 - a Scorer's
        sleep(sum(sequence.num_tokens for sequence in sequences) / self._tokens_per_second)
        return BatchResult([replace(_SCORE, num_loss_tokens=sequence.num_loss_tokens) for sequence in sequences])


class InstantCluster:
    """Implements `Loaded`: engines in other processes, each an `InstantScorer`."""

    tokenizer = None
    generation_ends = ()

    def __init__(self, num_engines: int) -> None:
        self.held = InstantScorer()
        self.info = self.held.info
        self._num_engines = num_engines
        self._ray = RayCluster(None)

    def engines(self, _compute: WorkerThread, weights: Weights) -> ClusterEngines[RayChunk]:
        return ClusterEngines(
            lambda _: self._ray.spawn(InstantScorer, num_gpus=0),
            self._ray.put,
            self.held,
            weights,
            num_engines=self._num_engines,
            limits=_LIMITS,
            on_close=self._ray.close,
        )


def main() -> None:
    """Serve until SIGTERM."""
    settings = CliApp.run(InstantSettings)
    configure_logging(settings.log_level, settings.log_format)
    serve(settings, _load(settings), tracing=None, progress=LoadingProgress())


def _load(settings: InstantSettings) -> Callable[[], Loaded]:
    if settings.engines == 1:
        return lambda: LoadedModel(InstantScorer(settings.tokens_per_second), None)
    return partial(InstantCluster, settings.engines)


if __name__ == "__main__":
    main()
