"""Scores that were computed a short time ago: a request that is sent again costs no computation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from vigor_service.engine.sequences import SequenceScore, TokenSequence


class ScoreCache:
    """The latest scores, by the digest of the weights and the sequence; the least recently used are dropped first.

    ``max_entries`` are kept, about 400 bytes each however long the sequences: their token ids are hashed, not kept.
    0 keeps nothing.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._scores: OrderedDict[bytes, SequenceScore] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def find(self, weight_digest: str, sequences: Iterable[TokenSequence]) -> dict[TokenSequence, SequenceScore]:
        """Return the scores that these sequences had under these weights, where they are known."""
        if not self._scores:
            return {}
        keys = {sequence: _key(weight_digest, sequence) for sequence in sequences}
        found = {sequence: key for sequence, key in keys.items() if key in self._scores}
        for key in found.values():
            self._scores.move_to_end(key)
        return {sequence: self._scores[key] for sequence, key in found.items()}

    def keep(self, weight_digest: str, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Keep these scores, and forget the oldest where there are too many."""
        if not self._max_entries:
            return
        for sequence, score in scores.items():
            self._scores[_key(weight_digest, sequence)] = score
        while len(self._scores) > self._max_entries:
            self._scores.popitem(last=False)


def _key(weight_digest: str, sequence: TokenSequence) -> bytes:
    """128 bits: with a billion sequences two would share a key once in 10^20 times."""
    return weight_digest.encode() + sequence.digest[:16]
