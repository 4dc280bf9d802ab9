"""Gram matrices XXᵀ of the rows of one sequence, and inner products of two of them.

A Gram matrix is symmetric: on a CPU only its lower triangle is computed, in blocks of rows. A CPU's libraries add the
terms of long float32 sums one after the other, so such sums run over slices here
(docs/decisions/0048-sums-over-the-vocabulary.md). Shapes: T rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from vigor_service.engine.ops.typed_torch import split

_BLOCK_ROWS = 64
_BLOCK_FEATURES = 8192  # per slice; MKL's sum over a whole vocabulary has an error of 1e-5
_TRIED_ROWS, _TRIED_FEATURES, _TRIES = 256, 1024, 7


@cache
def triangle_share() -> float:
    """Return ``measured_triangle_share()``, measured once in a process: it takes about 20 ms."""
    return measured_triangle_share()


def measured_triangle_share(clock_seconds: Callable[[], float] = perf_counter) -> float:
    """Return the time of ``gram_blocks`` divided by the time of the whole product, on one CPU thread, from 0.5 to 1."""
    rows_TD = torch.ones(_TRIED_ROWS, _TRIED_FEATURES)

    def seconds(operation: Callable[[Tensor], object]) -> float:
        started = clock_seconds()
        operation(rows_TD)
        return clock_seconds() - started

    ratios = [seconds(gram_blocks) / seconds(lambda rows_TD: rows_TD @ rows_TD.T) for _ in range(_TRIES)]
    return min(max(median(ratios), 0.5), 1.0)


def gram_blocks(rows_TD: Tensor) -> list[Tensor]:
    """Return the block rows of the lower triangle of ``rows_TD @ rows_TD.T`` in float32.

    Block i holds rows ``start_i:stop_i`` and columns ``:stop_i``; on a CUDA device one block holds all.
    """
    num_rows = len(rows_TD)
    size = num_rows if rows_TD.is_cuda else ceil(num_rows / ceil(num_rows / _BLOCK_ROWS))  # no small block is left over
    return [_products(rows_TD[start : start + size], rows_TD[: start + size]) for start in range(0, num_rows, size)]


def _products(left_LD: Tensor, right_RD: Tensor) -> Tensor:
    """Return ``left_LD.float() @ right_RD.float().T``, computed on a CPU in slices of the features."""
    if left_LD.is_cuda or left_LD.shape[1] <= _BLOCK_FEATURES:
        return matmul_float32(left_LD, right_RD.T)
    slices = zip(split(left_LD, _BLOCK_FEATURES, dim=1), split(right_RD, _BLOCK_FEATURES, dim=1), strict=True)
    products_LR = left_LD.new_zeros(len(left_LD), len(right_RD), dtype=torch.float64)
    for left_LS, right_RS in slices:
        products_LR += matmul_float32(left_LS, right_RS.T)
    return products_LR.to(torch.promote_types(left_LD.dtype, torch.float32))


def weighted_gram_blocks(rows_TD: Tensor) -> list[Tensor]:
    """Return ``gram_blocks`` with all that lies left of the diagonal blocks doubled, to count for both triangles."""
    blocks = gram_blocks(rows_TD)
    for block in blocks[1:]:
        block[:, : block.shape[1] - block.shape[0]] *= 2
    return blocks


def inner_product_(blocks: list[Tensor], weighted_blocks: list[Tensor]) -> Tensor:
    """Return ``(L * R).sum()`` of two whole Gram matrices as a float64 scalar; overwrites ``blocks``.

    Sums are in float32 within a row, and in float64 across rows.
    """
    row_sums = [left.mul_(right).sum(-1) for left, right in zip(blocks, weighted_blocks, strict=True)]
    return torch.cat(row_sums).sum(dtype=torch.float64)


def matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left.float() @ right.float()``, without casting 16-bit operands if the device can do so."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
