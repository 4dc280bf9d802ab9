"""Which sequences go into the next batch, and how many tokens it may have.

Pure bookkeeping: knows no clock, no thread and no scores.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from vigor_service.engine.sequences import TokenSequence

Owner = TypeVar("Owner")

LOWEST_SHARE = 1 / 16
"""Of the tokens that a batch may have at first, what is left however often memory runs out."""

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
    """Sequences that wait to be scored, each once, with all the owners that wait for it.

    Owners take turns of a whole batch each, whoever has had fewest turns first, and of those who came first: prompts
    stay together, requests finish one after the other rather than all at once, and a small one that comes behind a huge
    one is in the next batch.
    """

    def __init__(self) -> None:
        self._owners_of: dict[TokenSequence, list[Owner]] = {}
        self._shares: dict[Owner, _Share] = {}  # in the order of arrival
        self._fair_tokens = 0.0  # what an owner has had that was here all the time
        self._turn_tokens = 0

    def __len__(self) -> int:
        return len(self._owners_of)

    def add(self, owner: Owner, sequences: Iterable[TokenSequence]) -> None:
        """Let ``owner`` wait for these sequences too. It begins one turn behind those that were here all the time."""
        share = self._shares.setdefault(owner, _Share({}, self._fair_tokens - self._turn_tokens))
        for sequence in _by_prompt(sequences):
            if sequence not in share.sequences:
                share.sequences[sequence] = None
                self._owners_of.setdefault(sequence, []).append(owner)

    def remove(self, owner: Owner) -> None:
        """Forget an owner, and the sequences that nobody else waits for. Unknown owners are fine."""
        share = self._shares.pop(owner, None)
        for sequence in share.sequences if share else ():
            self._owners_of[sequence].remove(owner)
            if not self._owners_of[sequence]:
                del self._owners_of[sequence]

    def take_batch(self, max_batch_tokens: int) -> dict[TokenSequence, list[Owner]]:
        """Take out the next batch: sequence -> who waits for it. The pool must not be empty.

        A turn takes the owner's sequences that still fit: those of one prompt together, because it is computed once for
        all of them, the longest first. Lengths add up to ``max_batch_tokens`` at most, unless the very first sequence
        alone is longer: it runs alone.
        """
        batch: dict[TokenSequence, list[Owner]] = {}
        self._turn_tokens = room = max_batch_tokens
        turns = [_Turn(share, number, max_batch_tokens) for number, share in enumerate(self._shares.values())]
        heapify(turns)
        while turns:
            turn = heappop(turns)
            sequence = turn.next_sequence(room, batch)
            if sequence is not None:
                batch[sequence] = self._owners_of[sequence]
                turn.share.served_tokens += sequence.num_tokens
                room -= sequence.num_tokens
                heappush(turns, turn)
        self._fair_tokens += (max_batch_tokens - room) / len(self._shares)
        self._forget(batch)
        return batch

    def _forget(self, batch: Mapping[TokenSequence, list[Owner]]) -> None:
        for sequence, owners in batch.items():
            del self._owners_of[sequence]
            for owner in owners:
                del self._shares[owner].sequences[sequence]
                if not self._shares[owner].sequences:
                    del self._shares[owner]


@dataclass(slots=True)
class _Share:
    """What one owner waits for, in its order, and the tokens that it has had."""

    sequences: dict[TokenSequence, None]
    served_tokens: float


class _Turn:
    """An owner's place while a batch is put together. Within one batch there is ever less room, so none goes back."""

    def __init__(self, share: _Share, number: int, turn_tokens: int) -> None:
        self.share = share
        self._number = number
        self._turn_tokens = turn_tokens
        self._waiting = iter(share.sequences)

    def __lt__(self, other: _Turn) -> bool:
        return self._place() < other._place()

    def _place(self) -> tuple[float, int]:
        return self.share.served_tokens // self._turn_tokens, self._number

    def next_sequence(self, room: int, batch: Container[TokenSequence]) -> TokenSequence | None:
        """Return the owner's next one that fits and is not in the batch already; anything fits into an empty batch."""
        for sequence in self._waiting:
            if sequence not in batch and (sequence.num_tokens <= room or not batch):
                return sequence
        return None


def _by_prompt(sequences: Iterable[TokenSequence]) -> list[TokenSequence]:
    """The longest first, and behind it those with the same prompt."""
    longest_first = sorted(sequences, key=lambda sequence: -sequence.num_tokens)
    of_prompt: dict[tuple[int, ...], list[TokenSequence]] = {}
    for sequence in longest_first:
        of_prompt.setdefault(sequence.prompt_ids, []).append(sequence)
    return [sequence for group in of_prompt.values() for sequence in group]
