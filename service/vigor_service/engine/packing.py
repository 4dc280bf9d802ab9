"""Many sequences as one row of tokens, without padding.

Shapes: B sequences, N tokens in all, M loss rows in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vigor_service.engine.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Rows of equal prompts: what an operation computes row by row in the forward pass, it computes once for them.

    In a causal model a token's row depends on what precedes it alone. Gradients differ, so the backward pass has all N.
    """

    distinct_rows_U: Tensor  # rows of N: the first of each
    distinct_of_token_N: Tensor  # which of them each token's row equals

    def apply(self, operation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``operation(x)`` for an operation on rows and an x of shape (..., N, features)."""
        rows_UO = operation(x.flatten(0, -2).index_select(0, self.distinct_rows_U))
        return rows_UO.index_select(0, self.distinct_of_token_N).view(*x.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B sequences laid end to end. Sequence b owns rows ``token_slices[b]`` of N and ``loss_slices[b]`` of M.

    A sequence ends at its last loss position: what follows conditions nothing that is measured.
    """

    input_ids_1N: Tensor
    position_ids_1N: Tensor
    token_slices: list[slice]
    loss_rows_M: Tensor  # rows of N whose prediction counts
    targets_M: Tensor  # the token each of them must predict
    loss_slices: list[slice]
    shared: SharedRows | None  # where sequences have the same prompt

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.token_slices)

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.input_ids_1N.shape[1]

    def sequence_of_token_N(self) -> Tensor:
        """Return for each of the N tokens the index of its sequence."""
        lengths = torch.tensor([rows.stop - rows.start for rows in self.token_slices])
        return torch.arange(self.num_sequences).repeat_interleave(lengths).to(self.input_ids_1N.device)


def pack(sequences: Sequence[TokenSequence], device: torch.device) -> PackedBatch:
    """Lay the sequences end to end.

    Raises:
        ValueError: a sequence has no loss token, so that it has no gradient.
    """
    if any(sequence.num_loss_tokens == 0 for sequence in sequences):
        raise ValueError("a sequence without loss tokens has no gradient: leave it out of the batch")
    loss_positions = [sequence.loss_positions() for sequence in sequences]
    lengths = [positions[-1] + 1 for positions in loss_positions]
    token_slices = _slices(lengths)
    return PackedBatch(
        input_ids_1N=_row([s.token_ids[:length] for s, length in zip(sequences, lengths, strict=True)], device)[None],
        position_ids_1N=_row([range(length) for length in lengths], device)[None],
        token_slices=token_slices,
        loss_rows_M=_row(
            [[rows.start + p for p in positions] for rows, positions in zip(token_slices, loss_positions, strict=True)],
            device,
        ),
        targets_M=_row([sequence.loss_targets() for sequence in sequences], device),
        loss_slices=_slices([len(positions) for positions in loss_positions]),
        shared=_shared_rows(sequences, token_slices, device),
    )


def _shared_rows(
    sequences: Sequence[TokenSequence], token_slices: Sequence[slice], device: torch.device
) -> SharedRows | None:
    distinct: list[int] = []
    distinct_of_token: list[int] = []
    first_of_prompt: dict[tuple[int, ...], int] = {}
    for sequence, rows in zip(sequences, token_slices, strict=True):
        num_shared = len(sequence.prompt_ids) if sequence.prompt_ids in first_of_prompt else 0
        start = first_of_prompt.setdefault(sequence.prompt_ids, len(distinct))
        distinct_of_token += range(start, start + num_shared)
        own = range(rows.start + num_shared, rows.stop)
        distinct_of_token += range(len(distinct), len(distinct) + len(own))
        distinct += own
    if len(distinct) == len(distinct_of_token):
        return None
    return SharedRows(torch.tensor(distinct, device=device), torch.tensor(distinct_of_token, device=device))


def _slices(lengths: Sequence[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0))]


def _row(pieces: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([number for piece in pieces for number in piece], dtype=torch.long, device=device)
