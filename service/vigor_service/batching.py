"""Which sequences go into the next batch. Pure bookkeeping: knows no clock, no thread and no scores."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from operator import attrgetter
from typing import Generic, TypeVar

from vigor_service.engine.sequences import TokenSequence

Owner = TypeVar("Owner")

_length = attrgetter("num_tokens")


class Pool(Generic[Owner]):
    """Sequences that wait to be scored, each once, with all the owners that wait for it."""

    def __init__(self) -> None:
        self._owners_of: dict[TokenSequence, list[Owner]] = {}
        self._sequences_of: dict[Owner, set[TokenSequence]] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._owners_of)

    def add(self, owner: Owner, sequences: Iterable[TokenSequence]) -> None:
        """Let ``owner`` wait for these sequences."""
        self._sequences_of[owner] = set(sequences)
        for sequence in self._sequences_of[owner]:
            self._owners_of.setdefault(sequence, []).append(owner)

    def remove(self, owner: Owner) -> None:
        """Forget an owner, and the sequences that nobody else waits for. Unknown owners are fine."""
        for sequence in self._sequences_of.pop(owner, ()):
            self._owners_of[sequence].remove(owner)
            if not self._owners_of[sequence]:
                del self._owners_of[sequence]

    def take_batch(self, max_batch_tokens: int) -> dict[TokenSequence, list[Owner]]:
        """Take out the next batch: sequence -> who waits for it. The pool must not be empty.

        The longest sequence of the oldest owner leads, so nobody waits forever; the longest of the others that
        are no longer than it fill the batch, so little is padded. ``longest * count <= max_batch_tokens``,
        unless a single sequence is longer than that: it runs alone.
        """
        leader = max(next(iter(self._sequences_of.values())), key=_length)
        limit = leader.num_tokens
        others = (item for item in self._owners_of if item.num_tokens <= limit and item != leader)
        batch = [leader, *heapq.nlargest(max_batch_tokens // limit - 1, others, key=_length)]
        return {sequence: self._take(sequence) for sequence in batch}

    def _take(self, sequence: TokenSequence) -> list[Owner]:
        owners = self._owners_of.pop(sequence)
        for owner in owners:
            self._sequences_of[owner].discard(sequence)
            if not self._sequences_of[owner]:
                del self._sequences_of[owner]
        return owners
