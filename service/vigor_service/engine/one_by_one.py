"""Sequences that cannot be packed: each by the fast path or by the reference, whichever is faster here for its length.

Alone, a small sequence of a small model is often faster in a plain forward and backward pass, whose operations are
fewer; a large one is not, whose weight gradients cost more. Both are exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from vigor_service.engine.exact_norms import exact_score
from vigor_service.engine.fast_norms import FastNorms
from vigor_service.engine.sequences import SequenceScore, TokenSequence

Way = Literal["rules", "loop"]
_RUNS = 2  # the first warms up; the faster one counts


class OneByOne:
    """Scores sequences one by one; the first of each power of two of tokens is timed in both ways."""

    def __init__(
        self,
        fast: FastNorms,
        model: PreTrainedModel,
        measured: Mapping[str, nn.Parameter],
        *,
        clock_seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._ways: dict[Way, Callable[[TokenSequence], SequenceScore]] = {
            "rules": lambda sequence: fast.score([sequence])[0],
            "loop": lambda sequence: exact_score(model, sequence, measured),
        }
        self._clock_seconds = clock_seconds
        self._faster: dict[int, Way] = {}  # by the bit length of the number of tokens

    def score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Equal ``[exact_score(model, sequence, measured) for sequence in sequences]``."""
        return [self._ways[self._faster_way(sequence)](sequence) for sequence in sequences]

    def _faster_way(self, sequence: TokenSequence) -> Way:
        size = sequence.num_tokens.bit_length()
        if size not in self._faster:
            self._faster[size] = min(self._ways, key=lambda way: self._seconds(way, sequence))
        return self._faster[size]

    def _seconds(self, way: Way, sequence: TokenSequence) -> float:
        times: list[float] = []
        for _ in range(_RUNS):
            start = self._clock_seconds()
            self._ways[way](sequence)
            times.append(self._clock_seconds() - start)
        return min(times)
