"""What the engine scores, and what it answers: one prompt with one completion, as token ids.

Knows nothing about groups, ranks or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and one completion of it. Hashable: equal sequences have equal scores.

    ``loss_mask`` is as long as ``completion_ids`` (None: every completion token counts); a token that is
    masked out of the loss still conditions what follows.

    Raises:
        ValueError: the prompt is empty (its last token predicts the first completion token), or the mask's
            length differs from the completion's.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a sequence needs at least one prompt token")
        if self.loss_mask is not None and len(self.loss_mask) != len(self.completion_ids):
            raise ValueError(f"{len(self.loss_mask)} mask entries for {len(self.completion_ids)} completion tokens")

    @property
    def num_tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_loss_tokens(self) -> int:
        """T: the completion tokens that count in the loss."""
        return len(self.completion_ids) if self.loss_mask is None else sum(self.loss_mask)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's ids, then the completion's."""
        return self.prompt_ids + self.completion_ids

    def loss_positions(self) -> list[int]:
        """Positions in the sequence whose next-token prediction counts in the loss."""
        first = len(self.prompt_ids) - 1
        mask = self.loss_mask or (True,) * len(self.completion_ids)
        return [first + offset for offset, counts in enumerate(mask) if counts]

    def loss_targets(self) -> list[int]:
        """The token that each loss position must predict."""
        token_ids = self.token_ids
        return [token_ids[position + 1] for position in self.loss_positions()]


@dataclass(frozen=True, slots=True)
class SequenceScore:
    """The score of one sequence; every number is NaN when T is 0."""

    num_loss_tokens: int
    grad_norm: float
    mean_logprob: float
    mean_entropy: float
    self_certainty: float

    @property
    def scaled_grad_norm(self) -> float:
        """``grad_norm * sqrt(T)``: comparable between completions of different lengths."""
        return self.grad_norm * sqrt(self.num_loss_tokens)


EMPTY_SCORE = SequenceScore(0, nan, nan, nan, nan)
