# Not strict: Triton has no types, and the body of a kernel is a language of its own.
# pyright: standard
"""``‖GᵀA‖²`` per sequence through Gram matrices, as a Triton kernel: no Gram matrix is ever in memory.

One program computes one pair of tiles of rows of one sequence, in both AAᵀ and GGᵀ, multiplies the two in registers
and writes one number. Gram matrices are symmetric: pairs right of the diagonal are counted twice, those left of it
not computed. Partial sums are added up in float64, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vigor_service.engine.ops.kernels.launch_triton import Tile, check_inputs, launch
from vigor_service.engine.ops.kernels.row_ranges import RowRanges

# Two float32 accumulators of 128² are 128 registers of each of 8 warps' threads; float32 products use no tensor cores.
TILES = {
    torch.bfloat16: Tile({"ROWS": 128, "FEATURES": 64}, num_warps=8, num_stages=3),
    torch.float16: Tile({"ROWS": 128, "FEATURES": 64}, num_warps=8, num_stages=3),
    torch.float32: Tile({"ROWS": 64, "FEATURES": 32}, num_warps=8, num_stages=2),
}


def gram_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges, *, tile: Tile | None = None) -> Tensor:
    """Return what ``gram_norm.gram_norms`` returns, (B,), float64; float32 rows are multiplied in full float32.

    Raises:
        ValueError: the matrices do not fit each other, or have a dtype that kernels do not take.
        UnavailableError: the kernel cannot be compiled or launched here.
    """
    check_inputs(x_NI, gradient_NO)
    tile = tile or TILES[x_NI.dtype]
    num_tiles = triton.cdiv(ranges.longest, tile.sizes["ROWS"])
    num_pairs = num_tiles * (num_tiles + 1) // 2
    partials_BP = x_NI.new_zeros(len(ranges.bounds), num_pairs, dtype=torch.float32)
    launch(gram_norm_kernel, x_NI, gradient_NO, ranges, partials_BP, tile)
    return partials_BP.sum(1, dtype=torch.float64)


@triton.jit
def gram_norm_kernel(
    x,
    gradient,
    bounds,
    partials,
    num_inputs,
    num_outputs,
    x_row_stride,
    x_column_stride,
    gradient_row_stride,
    gradient_column_stride,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Write the part of the inner product of two Gram matrices that one pair of tiles adds."""
    pair, sequence = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(bounds + 2 * sequence), tl.load(bounds + 2 * sequence + 1)
    # Pairs are numbered column by column of the upper triangle: (0, 0), (0, 1), (1, 1), (0, 2), ...
    column = ((tl.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0).to(tl.int32)
    column = tl.where(column * (column + 1) // 2 > pair, column - 1, column)  # the root is rounded
    column = tl.where((column + 1) * (column + 2) // 2 <= pair, column + 1, column)
    row = pair - column * (column + 1) // 2
    if start + column * ROWS < stop:
        upper = start + row * ROWS + tl.arange(0, ROWS)
        lower = start + column * ROWS + tl.arange(0, ROWS)
        input_gram = _gram_tile(x, x_row_stride, x_column_stride, upper, lower, stop, num_inputs, ROWS, FEATURES, WIDEN)
        output_gram = _gram_tile(
            gradient,
            gradient_row_stride,
            gradient_column_stride,
            upper,
            lower,
            stop,
            num_outputs,
            ROWS,
            FEATURES,
            WIDEN,
        )
        weight = tl.where(row == column, 1.0, 2.0)
        share = weight * tl.sum(tl.sum(input_gram * output_gram, axis=1), axis=0)
        tl.store(partials + sequence * tl.num_programs(0) + pair, share)


@triton.jit
def _gram_tile(
    matrix,
    row_stride,
    column_stride,
    upper,
    lower,
    stop,
    num_features,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Return ``matrix[upper] @ matrix[lower].T`` in float32, with rows from ``stop`` on taken as zeros."""
    tile = tl.zeros((ROWS, ROWS), dtype=tl.float32)
    for first in range(0, num_features, FEATURES):
        features = (first + tl.arange(0, FEATURES)).to(tl.int64)
        left = tl.load(
            matrix + upper[:, None] * row_stride + features[None, :] * column_stride,
            mask=(upper < stop)[:, None] & (features < num_features)[None, :],
            other=0.0,
        )
        right = tl.load(
            matrix + lower[None, :] * row_stride + features[:, None] * column_stride,
            mask=(lower < stop)[None, :] & (features < num_features)[:, None],
            other=0.0,
        )
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        tile = tl.dot(left, right, tile, input_precision="ieee")
    return tile
