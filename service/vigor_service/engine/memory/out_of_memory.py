"""Recovery from running out of memory: a batch is halved until it fits.

Only a sequence that does not fit alone is not scored. The longest sequence that has run is remembered, so that the
caller learns a length that does fit.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from vigor_service.engine.sequences import SequenceScore, TokenSequence

logger = logging.getLogger(__name__)

_ALLOCATION_FAILURES = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN's only message for it; if memory is not the cause, no size fits
)


class NoMemoryLeftError(MemoryError):
    """Not even two tokens could be scored, so the length of a sequence is not the cause."""


Score = Callable[[Sequence[TokenSequence]], list[SequenceScore]]


@dataclass(frozen=True, slots=True)
class BatchScores:
    """What fitted into memory, and what did not.

    ``too_long`` has the sequences that did not fit alone, each with the longest length that is known to fit.
    ``fitting_tokens`` is None if no batch of several sequences had to be halved; else the most tokens that ran at once.
    """

    scores: Mapping[TokenSequence, SequenceScore]
    too_long: Mapping[TokenSequence, int]
    fitting_tokens: int | None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a GPU or on the host; every other error is a bug or bad input."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return type(error) is RuntimeError and any(failure in str(error) for failure in _ALLOCATION_FAILURES)


def release_memory() -> None:
    """Free what a failed try left: tracebacks in reference cycles hold its tensors, and torch keeps freed blocks."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class FittingScorer:
    """Scores distinct sequences with ``score``, in halves when memory runs out.

    ``score_frugally`` takes less memory and more time; it is tried on a single sequence that does not fit.
    """

    def __init__(
        self, score: Score, *, score_frugally: Score | None = None, release: Callable[[], None] = release_memory
    ) -> None:
        self._score = score
        self._score_frugally = score_frugally
        self._release = release
        self._longest_tokens = 0  # the longest sequence that has been scored

    def score(self, sequences: Sequence[TokenSequence]) -> BatchScores:
        """Score the sequences together if they fit, else in parts.

        Halving takes fewer attempts than twice the number of sequences. Errors that are not about memory pass through.

        Raises:
            NoMemoryLeftError: no sequence can be scored, however short.
        """
        scores: dict[TokenSequence, SequenceScore] = {}
        too_long: dict[TokenSequence, int] = {}
        num_halved, fitting_tokens = 0, 0
        waiting = [list(sequences)]
        while waiting:
            part = waiting.pop()
            if (part_scores := self.try_together(part)) is not None:
                scores |= zip(part, part_scores, strict=True)
                fitting_tokens = max(fitting_tokens, num_tokens(part))
            elif len(part) > 1:
                waiting += _halves(part)
                num_halved += 1
            else:
                too_long[part[0]] = self._length_that_fits(part[0])
        fitting_tokens = max([fitting_tokens, *too_long.values()])
        return BatchScores(scores, too_long, fitting_tokens if num_halved else None)

    def try_together(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore] | None:
        """Return the scores of the sequences, or None if memory ran out; what the attempt held is then freed."""
        scores = self._score_or_none(sequences, self._score)
        if scores is None and len(sequences) == 1 and self._score_frugally is not None:
            self._release()  # only here: inside the except block the traceback keeps tensors alive
            scores = self._score_or_none(sequences, self._score_frugally)
        if scores is None:
            self._release()
        else:
            self._longest_tokens = max([self._longest_tokens, *(sequence.num_tokens for sequence in sequences)])
        return scores

    def _score_or_none(self, sequences: Sequence[TokenSequence], score: Score) -> list[SequenceScore] | None:
        try:
            return score(sequences)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            sizes = {"sequences": len(sequences), "tokens": num_tokens(sequences)}
            logger.info("out_of_memory", extra={**sizes, "error": str(error)})
            return None

    def _length_that_fits(self, sequence: TokenSequence) -> int:
        """Return the longest length that has run, after trying halves of this sequence."""
        if self._longest_tokens >= sequence.num_tokens:
            self._longest_tokens = 0  # there was more memory then
        length = sequence.num_tokens // 2
        while length > max(self._longest_tokens, 1):
            self.try_together([_shortened(sequence, length)])
            length //= 2
        if not self._longest_tokens:
            raise NoMemoryLeftError("there is no memory for two tokens")
        return self._longest_tokens


def num_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Return the number of tokens of all sequences together."""
    return sum(sequence.num_tokens for sequence in sequences)


def _halves(sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
    """Return two parts with about the same number of tokens: the longest sequences, and the rest."""
    longest_first = sorted(sequences, key=lambda sequence: -sequence.num_tokens)
    half, taken, count = num_tokens(sequences) / 2, 0, 0
    while count == 0 or (taken < half and count < len(longest_first) - 1):
        taken += longest_first[count].num_tokens
        count += 1
    return [longest_first[:count], longest_first[count:]]


def _shortened(sequence: TokenSequence, length: int) -> TokenSequence:
    """Return the beginnings of its prompt and completion, in the same proportion, with a loss on every token."""
    num_prompt = min(max(1, len(sequence.prompt_ids) * length // sequence.num_tokens), length - 1)
    return TokenSequence(sequence.prompt_ids[:num_prompt], sequence.completion_ids[: length - num_prompt])
