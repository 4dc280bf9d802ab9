"""The faster of two exact methods: the rules of the fast path, or a plain forward and backward pass.

The rules save weight gradients and share prompts; a plain pass has fewer operations. Which is faster depends on the
model, the lengths and the machine, so both are timed on sequences that have to be scored anyway.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

from vigor_service.engine.batching.microbatches import TOKENS_AT_FULL_RATE
from vigor_service.engine.memory.out_of_memory import Score
from vigor_service.engine.norms.parallel_reference import Reference
from vigor_service.engine.sequences import SequenceScore, TokenSequence

logger = logging.getLogger(__name__)

Method = Literal["rules", "reference"]
Size: TypeAlias = tuple[int, bool]
"""The bit length of a sequence's number of tokens, and whether the sequence is scored alone."""

_TELLING_SECONDS = 0.5  # shorter runs are repeated: the first one of a size also allocates and compiles
_MORE_RUNS = 2
_MOST_TRIAL_SECONDS = 10.0


class FasterMethod:
    """Scores each sequence by the method that was faster for its size; the first of a size are timed with both."""

    def __init__(
        self, rules: Score, reference: Reference, *, clock_seconds: Callable[[], float] = time.perf_counter
    ) -> None:
        self._scores: dict[Method, Score] = {"rules": rules, "reference": reference.score}
        self._reference = reference
        self._clock_seconds = clock_seconds
        self._faster: dict[Size, Method] = {}

    def score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Return ``reference.score(sequences)``; the reference itself runs only if its gradients fit into memory."""
        if not self._reference.num_at_once(sequences):
            return self._scores["rules"](sequences)
        parts: dict[Method, list[TokenSequence]] = {}
        for sequence in dict.fromkeys(sequences):
            parts.setdefault(self._faster_method(sequence, sequences), []).append(sequence)
        scores: dict[TokenSequence, SequenceScore] = {}
        for method, part in parts.items():
            scores |= zip(part, self._scores[method](part), strict=True)
        return [scores[sequence] for sequence in sequences]

    def _faster_method(self, sequence: TokenSequence, sequences: Sequence[TokenSequence]) -> Method:
        size = _size(sequence, sequences)
        if size not in self._faster:
            trial = _trial([other for other in sequences if _size(other, sequences) == size], self._reference.num_lanes)
            seconds = self._seconds(trial)
            self._faster[size] = min(seconds, key=lambda method: seconds[method])
            logger.info(
                "seconds per method from %d tokens, %s: %s",
                2 ** (size[0] - 1),
                "alone" if size[1] else "several",
                seconds,
            )
        return self._faster[size]

    def _seconds(self, sequences: Sequence[TokenSequence]) -> dict[Method, float]:
        """Return each method's least time in alternating runs; only the rules' time if a run of them takes too long."""
        rules = self._seconds_once("rules", sequences)
        if rules > _MOST_TRIAL_SECONDS:
            return {"rules": rules}
        seconds: dict[Method, float] = {"rules": rules, "reference": self._seconds_once("reference", sequences)}
        for _ in range(_MORE_RUNS if min(seconds.values()) < _TELLING_SECONDS else 0):
            seconds = {method: min(least, self._seconds_once(method, sequences)) for method, least in seconds.items()}
        return seconds

    def _seconds_once(self, method: Method, sequences: Sequence[TokenSequence]) -> float:
        start = self._clock_seconds()
        self._scores[method](sequences)
        return self._clock_seconds() - start


def _size(sequence: TokenSequence, sequences: Sequence[TokenSequence]) -> Size:
    return sequence.num_tokens.bit_length(), len(sequences) == 1


def _trial(sequences: Sequence[TokenSequence], num_lanes: int) -> list[TokenSequence]:
    """Return the first of the sequences, enough for one batch on each lane."""
    tokens_before = accumulate((sequence.num_tokens for sequence in sequences), initial=0)
    enough = num_lanes * TOKENS_AT_FULL_RATE
    return [
        sequence
        for number, (sequence, before) in enumerate(zip(sequences, tokens_before, strict=False))
        if number < num_lanes or before < enough
    ]
