"""Scores that were computed a short time ago: a request that is sent again costs no computation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, SequenceScore, TokenSequence


class ScoreCache:
    """The latest scores, by the digest of the weights and the sequence; the least recently used are dropped first.

    ``max_entries`` are kept, about 400 bytes each however long the sequences: their token ids are hashed, not kept, and
    log-probabilities of single tokens are kept only if it ``keeps_token_logprobs``. 0 keeps nothing.
    """

    def __init__(self, max_entries: int, *, keeps_token_logprobs: bool = False) -> None:
        self._max_entries = max_entries
        self._keeps_token_logprobs = keeps_token_logprobs
        self._scores: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def find(
        self, weight_digest: str, sequences: Iterable[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS
    ) -> dict[TokenSequence, SequenceScore]:
        """Return the scores that these sequences had under these weights, where they are known with these parts."""
        if not self._scores:
            return {}
        keys = {sequence: _key(weight_digest, sequence) for sequence in sequences}
        entries = ((sequence, key, self._scores.get(key)) for sequence, key in keys.items())
        found = {sequence: (key, entry) for sequence, key, entry in entries if entry and entry.parts.include(parts)}
        for key, _ in found.values():
            self._scores.move_to_end(key)
        return {sequence: entry.score for sequence, (_, entry) in found.items()}

    def keep(
        self, weight_digest: str, scores: Mapping[TokenSequence, SequenceScore], parts: ScoreParts = NORM_AND_SIGNALS
    ) -> None:
        """Keep these scores, which have these parts, and forget the oldest where there are too many.

        A score with a norm is not replaced by one without.
        """
        if not self._max_entries:
            return
        kept_parts = replace(parts, token_logprobs=parts.token_logprobs and self._keeps_token_logprobs)
        for sequence, score in scores.items():
            key = _key(weight_digest, sequence)
            known = self._scores.get(key)
            if known is None or kept_parts.include(known.parts):
                self._scores[key] = _Entry(kept_parts, _with(score, kept_parts))
        while len(self._scores) > self._max_entries:
            self._scores.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    parts: ScoreParts
    score: SequenceScore


def _with(score: SequenceScore, parts: ScoreParts) -> SequenceScore:
    return score if parts.token_logprobs or score.token_logprobs is None else replace(score, token_logprobs=None)


def _key(weight_digest: str, sequence: TokenSequence) -> bytes:
    """128 bits: with a billion sequences two would share a key once in 10^20 times."""
    return weight_digest.encode() + sequence.digest[:16]
