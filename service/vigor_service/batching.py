"""Which sequences go into the next batch, and how many tokens it may have.

Pure bookkeeping: knows no clock, no thread and no scores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from operator import attrgetter
from typing import Generic, TypeVar

from vigor_service.engine.sequences import TokenSequence

Owner = TypeVar("Owner")

LOWEST_SHARE = 1 / 16
"""Of the tokens that a batch may have at first, what is left however often memory runs out."""

_length = attrgetter("num_tokens")
_logger = logging.getLogger(__name__)


class BatchBudget:
    """Tokens that a batch may have: fewer after memory ran out, so that not every batch fails first."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._lowest = max(1, int(max_tokens * LOWEST_SHARE))
        self._was_lowered = False

    def lower(self, fitting_tokens: int) -> None:
        """Take back what did not fit: down to what did, to half at most, and never below the lowest share.

        The first time is a warning in the log; it stays lowered until the service is started again.
        """
        lowered = max(fitting_tokens, self.max_tokens // 2, self._lowest)
        if lowered >= self.max_tokens:
            return
        level = logging.INFO if self._was_lowered else logging.WARNING
        _logger.log(level, "out_of_memory max_batch_tokens=%d before=%d", lowered, self.max_tokens)
        self.max_tokens, self._was_lowered = lowered, True


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

        The longest sequence of the oldest owner leads, so nobody waits forever. Others fill the batch while there is
        room: first those with the leader's prompt, which is computed once for all of them, then the longest. Their
        lengths add up to ``max_batch_tokens`` at most, unless the leader alone is longer: it runs alone.
        """
        leader = max(next(iter(self._sequences_of.values())), key=_length)
        batch, room = [leader], max_batch_tokens - leader.num_tokens
        others = (item for item in self._owners_of if item.num_tokens <= room and item != leader)
        for item in sorted(others, key=lambda item: (item.prompt_ids != leader.prompt_ids, -item.num_tokens)):
            if item.num_tokens <= room:
                batch.append(item)
                room -= item.num_tokens
        return {sequence: self._take(sequence) for sequence in batch}

    def _take(self, sequence: TokenSequence) -> list[Owner]:
        owners = self._owners_of.pop(sequence)
        for owner in owners:
            self._sequences_of[owner].discard(sequence)
            if not self._sequences_of[owner]:
                del self._sequences_of[owner]
        return owners
