"""Which sequences go into the next batch, and how many tokens it may have.

Pure bookkeeping: it knows no clock, no thread and no scores.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from math import ceil
from typing import Generic, TypeVar

from vigor_service.engine.sequences import TokenSequence

Owner = TypeVar("Owner")

LOWEST_SHARE = 1 / 16
"""Share of a batch's first token budget that is left however often memory runs out."""

MOST_PASSED_OVER = 256
"""Sequences longer than its room that one batch passes over, to be filled with shorter ones."""

_logger = logging.getLogger(__name__)


class BatchBudget:
    """Tokens that a batch may have: fewer after memory ran out, so that not every batch fails first."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._lowest = max(1, int(max_tokens * LOWEST_SHARE))
        self._was_lowered = False

    def lower(self, fitting_tokens: int) -> None:
        """Lower the budget to what fitted, but not below half of it, nor below the lowest share.

        The first time is a warning in the log; it stays lowered until the service is started again.
        """
        lowered = max(fitting_tokens, self.max_tokens // 2, self._lowest)
        if lowered >= self.max_tokens:
            return
        level = logging.INFO if self._was_lowered else logging.WARNING
        _logger.log(level, "out_of_memory", extra={"max_batch_tokens": lowered, "before": self.max_tokens})
        self.max_tokens, self._was_lowered = lowered, True


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Owner]):
    """A sequence, and the owners that wait for it. Compared by identity: a sequence is hashed token by token."""

    sequence: TokenSequence
    num_tokens: int
    owners: list[Owner]


@dataclass(slots=True, eq=False)
class _Share(Generic[Owner]):
    """The sequences that one owner waits for, in their order, and how many of its tokens were taken into batches.

    ``passed_over`` came first and did not fit into the batch that is being formed.
    """

    number: int
    served_tokens: float
    waiting: OrderedDict[_Waiting[Owner], None] = field(default_factory=OrderedDict[_Waiting[Owner], None])
    passed_over: list[_Waiting[Owner]] = field(default_factory=list[_Waiting[Owner]])

    def put_back(self) -> None:
        """Move what was passed over to the front again."""
        for waiting in reversed(self.passed_over):
            self.waiting[waiting] = None
            self.waiting.move_to_end(waiting, last=False)
        self.passed_over.clear()


@dataclass(slots=True, eq=False)
class _Batch(Generic[Owner]):
    """A batch that is being formed: its sequences with their owners, and the tokens that still fit."""

    room: int
    sequences: dict[TokenSequence, list[Owner]] = field(default_factory=dict[TokenSequence, list[Owner]])
    passed: list[_Share[Owner]] = field(default_factory=list[_Share[Owner]])  # that have something that was passed over
    num_passed_over: int = 0

    @property
    def is_open(self) -> bool:
        return self.room > 0 and self.num_passed_over < MOST_PASSED_OVER

    def next_of(self, share: _Share[Owner]) -> _Waiting[Owner] | None:
        """Return the share's next sequence that fits, and pass over longer ones. Any fits into an empty batch."""
        while share.waiting and self.is_open:
            waiting = next(iter(share.waiting))
            if waiting.num_tokens <= self.room or not self.sequences:
                return waiting
            if not share.passed_over:
                self.passed.append(share)
            del share.waiting[waiting]
            share.passed_over.append(waiting)
            self.num_passed_over += 1
        return None


class Pool(Generic[Owner]):
    """Sequences that wait to be scored, each once, with all the owners that wait for it: equal ones are merged here.

    Owners take turns of a whole batch each, the one with the fewest turns so far first, and of those the one that came
    first: prompts stay together, requests finish one after the other rather than all at once, and a small one that
    comes behind a huge one is in the next batch. Taking a batch costs what is in it, however much waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[TokenSequence, _Waiting[Owner]] = {}
        self._shares: dict[Owner, _Share[Owner]] = {}
        self._turns: list[tuple[float, int, _Share[Owner]]] = []  # a heap: turns had, order of arrival
        self._numbers = count()
        self._num_tokens = 0
        self._virtual_tokens = 0.0  # taken of an owner that was here all the time
        self._turn_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_tokens(self) -> int:
        """Tokens of all that waits."""
        return self._num_tokens

    def add(self, owner: Owner, sequences: Iterable[TokenSequence]) -> None:
        """Let ``owner`` wait for these sequences too. A new owner begins one turn behind the oldest ones."""
        share = self._shares.get(owner) or _Share[Owner](next(self._numbers), self._virtual_tokens - self._turn_tokens)
        for sequence in _by_prompt(sequences):
            waiting = self._waiting.get(sequence)
            if waiting is None:
                waiting = self._waiting[sequence] = _Waiting(sequence, sequence.num_tokens, [])
                self._num_tokens += waiting.num_tokens
            if waiting not in share.waiting:
                share.waiting[waiting] = None
                waiting.owners.append(owner)
        if share.waiting and owner not in self._shares:
            self._shares[owner] = share
            heappush(self._turns, self._turn(share))

    def remove(self, owner: Owner) -> None:
        """Forget an owner, and the sequences that no other waits for. Unknown owners are fine."""
        share = self._shares.pop(owner, None)
        if share is None:
            return
        for waiting in share.waiting:
            waiting.owners.remove(owner)
            if not waiting.owners:
                del self._waiting[waiting.sequence]
                self._num_tokens -= waiting.num_tokens
        self._turns = [turn for turn in self._turns if turn[-1] is not share]
        heapify(self._turns)

    def take_batch(self, max_batch_tokens: int, *, num_shares: int = 1) -> dict[TokenSequence, list[Owner]]:
        """Take out the next batch: each sequence with its owners. The pool must not be empty.

        A turn takes the owner's sequences that still fit: those of one prompt together, because it is computed once for
        all of them, the longest first. Lengths add up to ``max_batch_tokens`` at most, unless the very first sequence
        alone is longer: it runs alone. With ``num_shares`` engines to be given work, a batch has no more than that
        share of all that waits.
        """
        self._set_turn(max_batch_tokens)
        room = min(max_batch_tokens, ceil(self._num_tokens / num_shares))
        batch, num_owners = _Batch[Owner](room=room), len(self._shares)
        ended: list[_Share[Owner]] = []  # nothing of it fits any more
        while self._turns and batch.is_open:
            *_, share = heappop(self._turns)
            waiting = batch.next_of(share)
            if waiting is None:
                ended.append(share)
                continue
            share.served_tokens += waiting.num_tokens
            self._take(waiting, batch)
            if share.waiting or share.passed_over:
                heappush(self._turns, self._turn(share))
        for share in batch.passed:
            share.put_back()
        for share in ended:
            if share.waiting:
                heappush(self._turns, self._turn(share))
        self._virtual_tokens += (room - batch.room) / num_owners
        return batch.sequences

    def _turn(self, share: _Share[Owner]) -> tuple[float, int, _Share[Owner]]:
        return share.served_tokens // max(self._turn_tokens, 1), share.number, share

    def _set_turn(self, num_tokens: int) -> None:
        if self._turn_tokens != num_tokens:
            self._turn_tokens = num_tokens
            self._turns = [self._turn(share) for share in self._shares.values()]
            heapify(self._turns)

    def _take(self, waiting: _Waiting[Owner], batch: _Batch[Owner]) -> None:
        del self._waiting[waiting.sequence]
        self._num_tokens -= waiting.num_tokens
        batch.sequences[waiting.sequence] = waiting.owners
        batch.room -= waiting.num_tokens
        for owner in waiting.owners:
            share = self._shares[owner]
            del share.waiting[waiting]
            if not share.waiting and not share.passed_over:
                del self._shares[owner]


def _by_prompt(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """Return the sequences, the longest first, and behind it those with the same prompt."""
    longest_first = sorted(sequences, key=lambda sequence: -sequence.num_tokens)
    of_prompt: dict[tuple[int, ...], list[TokenSequence]] = {}
    for sequence in longest_first:
        of_prompt.setdefault(sequence.prompt_ids, []).append(sequence)
    return [sequence for group in of_prompt.values() for sequence in group]
