"""Scores that were computed a short time ago: a request that comes again costs nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from vigor_service.engine.sequences import SequenceScore, TokenSequence


class ScoreCache:
    """The latest scores, by the digest of the weights and the sequence; those not asked for longest go first.

    Sequences of up to ``max_tokens`` tokens are kept, all together: their token ids are what takes memory, about 36
    bytes each. 0 keeps nothing.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._scores: OrderedDict[tuple[str, TokenSequence], SequenceScore] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences whose scores are kept."""
        return self._num_tokens

    def find(self, weight_digest: str, sequences: Iterable[TokenSequence]) -> dict[TokenSequence, SequenceScore]:
        """Return the scores that these sequences had under these weights, where they are known."""
        found = {sequence: (weight_digest, sequence) for sequence in sequences}
        found = {sequence: key for sequence, key in found.items() if key in self._scores}
        for key in found.values():
            self._scores.move_to_end(key)
        return {sequence: self._scores[key] for sequence, key in found.items()}

    def keep(self, weight_digest: str, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Keep these scores, and forget the oldest where there are too many."""
        for sequence, score in scores.items():
            key = (weight_digest, sequence)
            if key not in self._scores:
                self._num_tokens += sequence.num_tokens
            self._scores[key] = score
        while self._num_tokens > self._max_tokens:
            (_, sequence), _ = self._scores.popitem(last=False)
            self._num_tokens -= sequence.num_tokens
