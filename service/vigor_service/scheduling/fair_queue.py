"""Selects the sequences of the next batch, and limits its tokens.

Pure bookkeeping: it knows no clock, no threads and no scores.
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
"""Share of the initial token budget of a batch below which the budget is never lowered."""

MOST_PASSED_OVER = 256
"""Maximum number of sequences that one batch skips because they do not fit, in search of shorter ones."""

_logger = logging.getLogger(__name__)


class BatchBudget:
    """Maximum number of tokens of a batch. It is lowered after memory ran out, so that later batches do not fail."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._lowest = max(1, int(max_tokens * LOWEST_SHARE))
        self._was_lowered = False

    def lower(self, fitting_tokens: int) -> None:
        """Lower the budget to what fitted, but not below half of the current budget, nor below the lowest share.

        The first time is logged as a warning. The budget stays lowered until the service is restarted.
        """
        lowered = max(fitting_tokens, self.max_tokens // 2, self._lowest)
        if lowered >= self.max_tokens:
            return
        level = logging.INFO if self._was_lowered else logging.WARNING
        _logger.log(level, "out_of_memory", extra={"max_batch_tokens": lowered, "before": self.max_tokens})
        self.max_tokens, self._was_lowered = lowered, True


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Owner]):
    """A sequence, and the owners that wait for it. Compared by identity, since hashing a sequence reads each token."""

    sequence: TokenSequence
    num_tokens: int
    owners: list[Owner]


@dataclass(slots=True, eq=False)
class _Share(Generic[Owner]):
    """The sequences that one owner waits for, in order, and how many of its tokens were taken into batches.

    ``passed_over`` holds sequences from the front that did not fit into the batch that is being formed.
    """

    number: int
    served_tokens: float
    waiting: OrderedDict[_Waiting[Owner], None] = field(default_factory=OrderedDict[_Waiting[Owner], None])
    passed_over: list[_Waiting[Owner]] = field(default_factory=list[_Waiting[Owner]])

    def put_back(self) -> None:
        """Move the sequences that were passed over back to the front."""
        for waiting in reversed(self.passed_over):
            self.waiting[waiting] = None
            self.waiting.move_to_end(waiting, last=False)
        self.passed_over.clear()


@dataclass(slots=True, eq=False)
class _Batch(Generic[Owner]):
    """A batch that is being formed: its sequences with their owners, and the tokens that still fit."""

    room: int
    sequences: dict[TokenSequence, list[Owner]] = field(default_factory=dict[TokenSequence, list[Owner]])
    passed: list[_Share[Owner]] = field(default_factory=list[_Share[Owner]])  # with passed-over sequences
    num_passed_over: int = 0

    @property
    def is_open(self) -> bool:
        return self.room > 0 and self.num_passed_over < MOST_PASSED_OVER

    def next_of(self, share: _Share[Owner]) -> _Waiting[Owner] | None:
        """Return the share's next sequence that fits, passing over longer ones. Any sequence fits an empty batch."""
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
    """Sequences that wait to be scored, each with all the owners that wait for it. Equal sequences are merged here.

    Owners take turns, and a turn is worth a whole batch of tokens. The owner with the fewest turns so far is next;
    among equals, the one that arrived first. So prompts stay together, and requests finish one after the other rather
    than all at once. A small request that arrives after a huge one is in the next batch. The cost of taking a batch
    depends on its own size, not on how much waits.
    """

    def __init__(self) -> None:
        self._waiting: dict[TokenSequence, _Waiting[Owner]] = {}
        self._shares: dict[Owner, _Share[Owner]] = {}
        self._turns: list[tuple[float, int, _Share[Owner]]] = []  # a heap: turns so far, order of arrival
        self._numbers = count()
        self._num_tokens = 0
        self._virtual_tokens = 0.0  # tokens taken from an owner that waited from the start
        self._turn_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all waiting sequences."""
        return self._num_tokens

    def add(self, owner: Owner, sequences: Iterable[TokenSequence]) -> None:
        """Let ``owner`` wait for these sequences too.

        A new owner starts with one turn fewer than an owner that has waited from the start.
        """
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
        """Remove an owner, and the sequences that no other owner waits for. Unknown owners are ignored."""
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
        """Remove and return the next batch: each sequence with its owners. The pool must not be empty.

        A turn takes the owner's sequences that still fit, the longest first. Those of one prompt stay together, because
        the prompt is computed once for all of them. The lengths add up to at most ``max_batch_tokens``, unless the
        first sequence is longer: then it runs alone. If ``num_shares`` engines need work, a batch has at most its share
        of all waiting tokens.
        """
        self._set_turn(max_batch_tokens)
        room = min(max_batch_tokens, ceil(self._num_tokens / num_shares))
        batch, num_owners = _Batch[Owner](room=room), len(self._shares)
        ended: list[_Share[Owner]] = []  # shares without a sequence that still fits
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
    """Return the sequences, the longest first, each followed by the others with the same prompt."""
    longest_first = sorted(sequences, key=lambda sequence: -sequence.num_tokens)
    of_prompt: dict[tuple[int, ...], list[TokenSequence]] = {}
    for sequence in longest_first:
        of_prompt.setdefault(sequence.prompt_ids, []).append(sequence)
    return [sequence for group in of_prompt.values() for sequence in group]
