"""The engine: owns a model, its measured parameters and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from vigor_service.engine.sequences import SequenceScore, TokenSequence


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Scores of one batch in the order of its sequences, and the padding the layout cost."""

    scores: list[SequenceScore]
    padding_tokens: int


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
    rules: Mapping[str, Sequence[str]]  # rule -> names of the parameters it claims


class Scorer(Protocol):
    """The seam between the service and the engine: all that the service knows of it."""

    @property
    def info(self) -> EngineInfo: ...

    def score(self, sequences: Sequence[TokenSequence]) -> BatchResult:
        """Score one batch; the caller keeps it within its token budget."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor a trainer must supply, tied ones once, under their canonical name."""
        ...

    def aliases(self) -> dict[str, list[str]]:
        """Canonical name of a tied tensor -> its other names."""
        ...

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy verified tensors into the model, in place."""
        ...
