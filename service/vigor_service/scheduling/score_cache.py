"""Cache of recently computed scores, so that a request that is sent again needs no computation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, SequenceScore, TokenSequence


class ScoreCache:
    """The latest scores, by the digest of the weights and the sequence; the least recently used are dropped first.

    At most ``max_entries`` are kept (0: none), with about 400 bytes each, independent of the length of the sequences:
    token ids are hashed, not stored. Log-probabilities of single tokens are stored only with ``keeps_token_logprobs``.
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
        """Return the known scores of these sequences under these weights, if they have at least these parts."""
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
        """Store these scores, which have these parts, and drop the least recently used ones above the limit.

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
    """Return a key with 128 bits of the sequence's digest.

    The probability that any two of a billion sequences share a key is less than 10^-20.
    """
    return weight_digest.encode() + sequence.digest[:16]
