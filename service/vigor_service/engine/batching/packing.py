"""Packing of several sequences into one row of tokens, without padding.

Shapes: B sequences, N tokens in all, M loss rows in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vigor_service.engine.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B sequences laid end to end. Sequence b owns rows ``token_slices[b]`` of N and ``loss_slices[b]`` of M.

    Unless it is packed whole, a sequence ends at its last loss position: in a causal model, later tokens do not affect
    the loss.
    """

    input_ids_1N: Tensor
    position_ids_1N: Tensor
    token_slices: list[slice]
    loss_rows_M: Tensor  # rows of N whose prediction counts
    targets_M: Tensor  # the token each of them must predict
    loss_slices: list[slice]
    _memberships: dict[torch.dtype, Tensor] = field(default_factory=dict[torch.dtype, Tensor], init=False, repr=False)

    @property
    def num_sequences(self) -> int:
        """B, the number of sequences."""
        return len(self.token_slices)

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens of all sequences."""
        return self.input_ids_1N.shape[1]

    def sequence_of_token_N(self) -> Tensor:
        """Return for each of the N tokens the index of its sequence."""
        lengths = torch.tensor([rows.stop - rows.start for rows in self.token_slices])
        return torch.arange(self.num_sequences).repeat_interleave(lengths).to(self.input_ids_1N.device)

    def membership_BN(self, dtype: torch.dtype) -> Tensor:
        """Return a matrix (B, N): 1 where the token belongs to the sequence, else 0. It is cached for each dtype."""
        if dtype not in self._memberships:
            sequence_B1 = torch.arange(self.num_sequences, device=self.input_ids_1N.device)[:, None]
            self._memberships[dtype] = (sequence_B1 == self.sequence_of_token_N()).to(dtype)
        return self._memberships[dtype]


def pack(sequences: Sequence[TokenSequence], device: torch.device, *, whole: bool = False) -> PackedBatch:
    """Return the sequences packed end to end: ``whole``, or without the tokens after their last loss position.

    Raises:
        ValueError: a sequence has no loss token, so that it has no gradient.
    """
    if any(sequence.num_loss_tokens == 0 for sequence in sequences):
        raise ValueError("a sequence without loss tokens has no gradient: leave it out of the batch")
    loss_positions = [sequence.loss_positions() for sequence in sequences]
    ends = [positions[-1] + 1 for positions in loss_positions]
    lengths = [sequence.num_tokens for sequence in sequences] if whole else ends
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
    )


def pack_prompts(prompts: Sequence[tuple[int, ...]], device: torch.device) -> PackedBatch:
    """Return the prompts packed end to end, without loss positions."""
    none = torch.tensor([], dtype=torch.long, device=device)
    return PackedBatch(
        input_ids_1N=_row(prompts, device)[None],
        position_ids_1N=_row([range(len(prompt)) for prompt in prompts], device)[None],
        token_slices=_slices([len(prompt) for prompt in prompts]),
        loss_rows_M=none,
        targets_M=none,
        loss_slices=[],
    )


def _slices(lengths: Sequence[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0))]


def _row(pieces: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([number for piece in pieces for number in piece], dtype=torch.long, device=device)
