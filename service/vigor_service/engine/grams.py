"""Gram matrices XXᵀ of the rows of one sequence, and inner products of two of them.

A Gram matrix is symmetric: on a CPU only its lower triangle is computed, in blocks of rows. Shapes: T rows, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ROWS = 64  # on two cores, blocks of 64 take 0.65 to 0.85 of the time of the whole product at T = 127 to 255


def gram_blocks(rows_TD: Tensor) -> list[Tensor]:
    """Return the block rows of the lower triangle of ``rows_TD @ rows_TD.T`` in float32.

    Block i holds rows ``start_i:stop_i`` and columns ``:stop_i``; on a CUDA device one block holds all.
    """
    size = len(rows_TD) if rows_TD.is_cuda else _BLOCK_ROWS
    return [
        matmul_float32(rows_TD[start : start + size], rows_TD[: start + size].T)
        for start in range(0, len(rows_TD), size)
    ]


def inner_product_(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """``(L * R).sum()`` of two whole Gram matrices as a float64 scalar; overwrites the blocks of ``left``.

    What lies left of the diagonal blocks counts twice. Float32 within a row, float64 across rows.
    """
    shares: list[Tensor] = []
    for left_block, right_block in zip(left, right, strict=True):
        products = left_block.mul_(right_block)
        num_left_of_diagonal = products.shape[1] - products.shape[0]
        shares.append(products.sum(-1) + products[:, :num_left_of_diagonal].sum(-1))
    return torch.cat(shares).sum(dtype=torch.float64)


def matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """``left.float() @ right.float()``, with 16-bit operands left as they are where the device can do so."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class GramCache:
    """AAᵀ per sequence for the last input A seen: q, k and v share theirs, and so do gate and up."""

    def __init__(self) -> None:
        self._input: Tensor | None = None
        self._grams: dict[int, list[Tensor]] = {}

    def blocks(self, input_ND: Tensor, sequence: int, rows_TD: Tensor) -> list[Tensor]:
        """Return ``gram_blocks(rows_TD)``, where ``rows_TD`` are the input's rows of that sequence."""
        if not self._is_last_input(input_ND):
            # Holding the tensor keeps its address from being reused while the cache is alive.
            self._input, self._grams = input_ND, {}
        if sequence not in self._grams:
            self._grams[sequence] = gram_blocks(rows_TD)
        return self._grams[sequence]

    def _is_last_input(self, input_ND: Tensor) -> bool:
        last = self._input
        return last is not None and last.data_ptr() == input_ND.data_ptr() and last.shape == input_ND.shape
