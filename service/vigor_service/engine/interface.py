"""The engine's interface to the rest of the service: its requests, its results, and the protocol that it implements.

Other packages import only from here and from ``sequences``; only the assembly in ``__main__`` knows more.
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
"""A function that writes new values into a tensor, in place."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Scores of one batch in the order of its sequences.

    ``too_long`` has the sequences that did not fit into memory even alone, each with the longest length that is known
    to fit; their score is ``EMPTY_SCORE``. ``fitting_tokens`` is the largest number of tokens that did fit at once, or
    None if the batch did not have to be halved.
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
    media_token_ids: frozenset[int] = frozenset()  # placeholders for an image, a video or a sound
    product_libraries: Mapping[str, int] = field(default_factory=dict[str, int])  # library -> number of classes


class HeldWeights(Protocol):
    """The weights of a model by name, and how new values are written into them."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return every tensor that a trainer must supply by its canonical name, tied tensors once."""
        ...

    def aliases(self) -> dict[str, list[str]]:
        """Return canonical name of a tied tensor -> its other names."""
        ...

    def plan_checkpoint(self, names: Iterable[str]) -> CheckpointPlan:
        """Return how a checkpoint's tensors of these names are converted into the model's tensors."""
        ...

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        """Write verified values into the named tensors of the model, in place."""
        ...


class Scorer(HeldWeights, Protocol):
    """The protocol of an engine: everything that the service uses of it."""

    @property
    def info(self) -> EngineInfo: ...

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        """Return the scores of one batch, each with these parts; the caller keeps the batch within its token budget.

        Raises:
            NoMemoryLeftError: no sequence can be scored, however short.
        """
        ...

    def attribute(self, sequence: TokenSequence) -> Attribution:
        """Return where the gradient norm of one sequence comes from; it is exact even if norms are estimated.

        Raises:
            ValueError: the sequence has no loss tokens.
            NoMemoryLeftError: the attribution does not fit into memory.
            UnsupportedByEngineError: the engine scores, but does not support attribution.
        """
        ...

    def measure_batch_tokens(self) -> int:
        """Return how many tokens a batch may have, measured by trial batches."""
        ...
