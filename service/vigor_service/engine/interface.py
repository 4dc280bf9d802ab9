"""What the rest of the service sees of the engine: its requests, its results, and the protocol of both.

Other rooms import from here and from ``sequences`` alone; only the assembly in ``__main__`` knows more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from vigor_service.engine.attribution.attribution import Attribution as Attribution
from vigor_service.engine.loading.checkpoint_names import CheckpointPlan as CheckpointPlan
from vigor_service.engine.loading.checkpoint_names import Conversion as Conversion
from vigor_service.engine.loading.checkpoint_names import ConversionError as ConversionError
from vigor_service.engine.loading.checkpoint_names import Read as Read
from vigor_service.engine.memory.device_memory import device_memory_bytes as device_memory_bytes
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, SequenceScore, TokenSequence

Write: TypeAlias = Callable[[Tensor], None]
"""Gives a tensor new values, in place."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Scores of one batch in the order of its sequences.

    ``too_long`` has the sequences that did not fit into memory even alone, each with the longest length that is known
    to fit; their score is ``EMPTY_SCORE``. ``fitting_tokens`` is None unless the batch had to be halved:
    the most tokens that did fit at once.
    """

    scores: list[SequenceScore]
    too_long: Mapping[TokenSequence, int] = field(default_factory=dict[TokenSequence, int])
    fitting_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine measures, and how."""

    model: str
    architecture: str
    num_parameters: int
    num_measured_parameters: int
    dtype: str
    device: str
    max_sequence_tokens: int
    vocab_size: int
    tied_embeddings: bool
    layout: str
    norm_probes: int | None  # sketch vectors of each matrix; None: every norm is exact
    rules: Mapping[str, Sequence[str]]  # rule -> names of the parameters it claims
    lora_scalings: Mapping[str, float] = field(default_factory=dict[str, float])  # of each layer that has an adapter
    media_token_ids: frozenset[int] = frozenset()  # they stand for an image, a video or a sound
    product_libraries: Mapping[str, int] = field(default_factory=dict[str, int])  # library -> classes that it computes


class HeldWeights(Protocol):
    """The weights of a model by name, and how new values get in."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor a trainer must supply, tied ones once, under their canonical name."""
        ...

    def aliases(self) -> dict[str, list[str]]:
        """Canonical name of a tied tensor -> its other names."""
        ...

    def plan_checkpoint(self, names: Iterable[str]) -> CheckpointPlan:
        """Say which of these tensors a checkpoint's tensors of these names become."""
        ...

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        """Write verified values into the named tensors of the model, in place."""
        ...


class Scorer(HeldWeights, Protocol):
    """The seam between the service and the engine: all that the service knows of it."""

    @property
    def info(self) -> EngineInfo: ...

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        """Score one batch; the caller keeps it within its token budget. Each score has these parts.

        Raises:
            NoMemoryLeftError: nothing can be scored, however short.
        """
        ...

    def attribute(self, sequence: TokenSequence) -> Attribution:
        """Say where the gradient norm of one sequence comes from; it is exact also where norms are estimated.

        Raises:
            ValueError: no token counts in the loss.
            NoMemoryLeftError: it does not fit into memory.
            UnsupportedByEngineError: the engine scores, and attributes nothing.
        """
        ...

    def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have, by trial batches."""
        ...
