"""Which sequences of a request share a forward and backward pass, and which thread runs it.

On a CPU a batch is small: matrix products come near one core's rate at about 128 rows, and what a batch keeps in
memory grows with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from vigor_service.engine.sequences import TokenSequence

TOKENS_AT_FULL_RATE = 128  # rows at which one core's matrix products come near their rate


def small_batches(sequences: Sequence[TokenSequence], *, num_tokens: int) -> list[list[TokenSequence]]:
    """Return batches that end as soon as they have ``num_tokens``, longest sequences first."""
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
    """Share the batches out so that all queues have about the same number of tokens.

    Every second queue begins with its smallest batch: the largest are not in memory at the same time.
    """
    shared_out: list[list[list[TokenSequence]]] = [[] for _ in range(min(num_queues, len(batches)))]
    for batch in sorted(batches, key=lambda batch: -_num_tokens(batch)):
        min(shared_out, key=lambda queue: sum(map(_num_tokens, queue))).append(batch)
    return [queue[:: 1 if index % 2 == 0 else -1] for index, queue in enumerate(shared_out)]


def _num_tokens(batch: list[TokenSequence]) -> int:
    return sum(sequence.num_tokens for sequence in batch)
