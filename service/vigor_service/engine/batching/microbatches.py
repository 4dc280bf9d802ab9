"""Grouping of a request's sequences into batches, which share a forward and backward pass, and of batches into queues.

On a CPU a batch is small: one core's matrix products approach its peak rate at about 128 rows, and the memory that a
batch needs grows with its size.
"""

from __future__ import annotations

from collections.abc import Sequence

from vigor_service.engine.sequences import TokenSequence

TOKENS_AT_FULL_RATE = 128  # rows at which one core's matrix products approach its peak rate


def small_batches(sequences: Sequence[TokenSequence], *, num_tokens: int) -> list[list[TokenSequence]]:
    """Return batches, longest sequences first; a batch is complete as soon as it has ``num_tokens`` tokens."""
    batches: list[list[TokenSequence]] = []
    missing = 0
    for sequence in sorted(sequences, key=lambda sequence: -sequence.num_tokens):
        if missing <= 0:
            batches.append([])
            missing = num_tokens
        batches[-1].append(sequence)
        missing -= sequence.num_tokens
    return batches


def queues(batches: Sequence[list[TokenSequence]], *, num_queues: int) -> list[list[list[TokenSequence]]]:
    """Return the batches in ``num_queues`` queues, or fewer, with about the same number of tokens in each.

    Every second queue begins with its smallest batch, so that the largest batches are not in memory at the same time.
    """
    shared_out: list[list[list[TokenSequence]]] = [[] for _ in range(min(num_queues, len(batches)))]
    for batch in sorted(batches, key=lambda batch: -_num_tokens(batch)):
        min(shared_out, key=lambda queue: sum(map(_num_tokens, queue))).append(batch)
    return [queue[:: 1 if index % 2 == 0 else -1] for index, queue in enumerate(shared_out)]


def _num_tokens(batch: list[TokenSequence]) -> int:
    return sum(sequence.num_tokens for sequence in batch)
