"""The engine's input and output types: one prompt with one completion, as token ids, and its score.

This module knows nothing about groups, ranks or text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import nan, sqrt

_DIGEST_BYTES = 32  # as long as a SHA-256 digest: two contents with the same digest cannot be found
_HASHED_AT_ONCE = 1 << 16  # ids; one call for millions would block the interpreter for all other threads


class PromptIds(tuple[int, ...]):
    """The token ids of a prompt, as a tuple with a digest. The sequences of a group share one object.

    The ids are read once for all sequences that hold the object: ``digest`` is a 32-byte hash of them, and two prompts
    are compared by their digests.
    """

    digest: bytes
    _hash: int

    def __new__(cls, token_ids: Iterable[int]) -> PromptIds:
        """Return the prompt of these ids; a ``PromptIds`` is returned as it is."""
        if isinstance(token_ids, PromptIds):
            return token_ids
        prompt = super().__new__(cls, token_ids)
        hasher = blake2b(digest_size=_DIGEST_BYTES)
        _update(hasher, prompt)
        prompt.digest = hasher.digest()
        prompt._hash = super(PromptIds, prompt).__hash__()  # the hash of the equal tuple
        return prompt

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, PromptIds) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other


class UnsupportedByEngineError(Exception):
    """An engine of this kind does not support the requested operation."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """A prompt and one completion of it. Hashable: equal sequences have equal scores.

    ``loss_mask`` is as long as ``completion_ids`` (None: every completion token counts); a token that is
    masked out of the loss still conditions what follows. ``digest`` is a 32-byte hash of all three: sequences are
    hashed and compared by it, whatever their length. A prompt that is a ``PromptIds`` is read once for all of its
    sequences.

    Raises:
        ValueError: the prompt is empty (its last token predicts the first completion token), or the mask's
            length differs from the completion's.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...] | None = None
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("a sequence needs at least one prompt token")
        if self.loss_mask is not None and len(self.loss_mask) != len(self.completion_ids):
            raise ValueError(f"{len(self.loss_mask)} mask entries for {len(self.completion_ids)} completion tokens")
        prompt_ids = PromptIds(self.prompt_ids)
        object.__setattr__(self, "prompt_ids", prompt_ids)
        object.__setattr__(self, "digest", _digest(prompt_ids, self.completion_ids, self.loss_mask))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenSequence) and self.digest == other.digest

    @property
    def num_tokens(self) -> int:
        """The number of tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_loss_tokens(self) -> int:
        """T, the number of completion tokens that count in the loss."""
        return len(self.completion_ids) if self.loss_mask is None else sum(self.loss_mask)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's ids, then the completion's."""
        return self.prompt_ids + self.completion_ids

    def loss_positions(self) -> list[int]:
        """Return the positions in the sequence whose next-token prediction counts in the loss."""
        first = len(self.prompt_ids) - 1
        mask = self.loss_mask or (True,) * len(self.completion_ids)
        return [first + offset for offset, counts in enumerate(mask) if counts]

    def loss_targets(self) -> list[int]:
        """Return the token that each loss position must predict."""
        token_ids = self.token_ids
        return [token_ids[position + 1] for position in self.loss_positions()]


@dataclass(frozen=True, slots=True)
class ScoreParts:
    """The parts that a score must have in addition to its signals, which every pass gives.

    Without ``norm`` no backward pass runs, and no activations are kept for one.
    """

    norm: bool = True
    token_logprobs: bool = False

    def include(self, other: ScoreParts) -> bool:
        """Return whether a score with these parts has the other's parts too."""
        return self.norm >= other.norm and self.token_logprobs >= other.token_logprobs


NORM_AND_SIGNALS = ScoreParts()


@dataclass(frozen=True, slots=True)
class SequenceScore:
    """The score of one sequence; every number is NaN when T is 0.

    ``token_logprobs`` has one number for each loss token. A ``grad_norm`` that was not requested is NaN, and
    ``token_logprobs`` that were not requested are None.
    """

    num_loss_tokens: int
    grad_norm: float
    mean_logprob: float
    mean_entropy: float
    self_certainty: float
    mean_probability: float
    token_logprobs: Sequence[float] | None = None

    @property
    def scaled_grad_norm(self) -> float:
        """``grad_norm * sqrt(T)``: comparable between completions of different lengths."""
        return self.grad_norm * sqrt(self.num_loss_tokens)

    @property
    def sum_logprob(self) -> float:
        """The log-probability of all loss tokens together."""
        return self.mean_logprob * self.num_loss_tokens


EMPTY_SCORE = SequenceScore(0, nan, nan, nan, nan, nan, ())


def _digest(prompt_ids: PromptIds, completion_ids: Sequence[int], loss_mask: Sequence[bool] | None) -> bytes:
    """Return the digest of a sequence. It covers the lengths, so that ids cannot move from one part to the next."""
    lengths = (len(prompt_ids), len(completion_ids), -1 if loss_mask is None else len(loss_mask))
    hasher = blake2b(prompt_ids.digest, digest_size=_DIGEST_BYTES)
    hasher.update(array("q", lengths))
    _update(hasher, completion_ids)
    hasher.update(bytes(loss_mask or ()))
    return hasher.digest()


def _update(hasher: blake2b, token_ids: Sequence[int]) -> None:
    for first in range(0, len(token_ids), _HASHED_AT_ONCE):
        hasher.update(array("q", token_ids[first : first + _HASHED_AT_ONCE]))
