"""Prompts that several sequences share: linear layers compute their outputs for a prompt's rows only once.

In a causal model a token's row depends only on the tokens up to it, so the rows of a prompt are the same in all of its
sequences, in any batch. Gradients differ: the backward pass runs over all rows of all sequences.

This is done only on a CPU. On a GPU, copying the rows into every layer's output costs as much as the shorter products
save, up to prompts of 4,096 tokens at least (docs/decisions/0020-on-a-gpu.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vigor_service.engine.batching.packing import PackedBatch
from vigor_service.engine.ops.typed_torch import split
from vigor_service.engine.sequences import TokenSequence

MIN_TOKENS = 16  # a pass of fewer rows costs about what it saves

Prompt = tuple[int, ...]


def shared_prompts(sequences: Sequence[TokenSequence]) -> list[Prompt]:
    """Return the prompts that are worth a separate pass: those of several sequences, with ``MIN_TOKENS`` or more."""
    counts = Counter(sequence.prompt_ids for sequence in sequences)
    return [prompt for prompt, count in counts.items() if count > 1 and len(prompt) >= MIN_TOKENS]


def num_tokens_without(prompts: Container[Prompt], sequences: Sequence[TokenSequence]) -> int:
    """Return the number of tokens of all sequences together, without those of these prompts."""
    return sum(
        len(sequence.completion_ids) if sequence.prompt_ids in prompts else sequence.num_tokens
        for sequence in sequences
    )


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Outputs of linear layers for the rows of some prompts, laid end to end."""

    slices: Mapping[Prompt, slice]  # prompt -> its rows in the outputs
    outputs: Mapping[int, Tensor]  # id of the weight -> (rows, O)

    def in_batch(self, sequences: Sequence[TokenSequence], batch: PackedBatch) -> KnownRows:
        """Return which rows are known in the batch that these sequences are packed into."""
        places = zip(sequences, batch.token_slices, strict=True)
        known = [
            (slice(rows.start, rows.start + len(sequence.prompt_ids)), self.slices[sequence.prompt_ids])
            for sequence, rows in places
            if sequence.prompt_ids in self.slices
        ]
        return KnownRows(self.outputs, known, batch.num_tokens)


class KnownRows:
    """The rows of one batch: the outputs of some are known, those of the others have to be computed."""

    def __init__(self, outputs: Mapping[int, Tensor], known: Sequence[tuple[slice, slice]], num_rows: int) -> None:
        self._outputs = outputs
        self._known = known
        ends = [slice(0, 0), *(rows for rows, _ in known), slice(num_rows, num_rows)]
        self._unknown = [slice(left.stop, right.start) for left, right in pairwise(ends)]  # gaps around the known

    def complete(self, operation: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return ``operation(x)``, of which only unknown rows are computed, and the pieces that it is joined from.

        ``operation`` works on each row separately; x has the shape (..., N, features). ``join_rows(*pieces)`` gives the
        rows again; there are no pieces if all rows were computed.
        """
        if id(weight) not in self._outputs or not self._known:
            return operation(x), []
        x_NI = x.flatten(0, -2)
        unknown = [x_NI[rows] for rows in self._unknown if rows.start < rows.stop] or [x_NI[:0]]
        computed_UO = operation(unknown[0] if len(unknown) == 1 else torch.cat(unknown))
        computed = split(computed_UO, [rows.stop - rows.start for rows in self._unknown])
        known = [self._outputs[id(weight)][source] for _, source in self._known]
        pieces = [*(piece for pair in zip(computed, known, strict=False) for piece in pair), computed[-1]]
        return join_rows(*pieces, shape=(*x.shape[:-1], -1)), pieces


def join_rows(*pieces: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the rows of all pieces, in order, as a tensor of this shape."""
    return torch.cat(pieces).view(shape)
