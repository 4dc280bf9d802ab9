# Not strict: Triton has no types, and the body of a kernel is a language of its own.
# pyright: standard
"""``‖GᵀA‖²`` per sequence through the weight's gradient, as a Triton kernel: the gradient is never in memory.

One program computes one tile of GᵀA of one sequence, squares and sums it in registers and writes one number. Partial
sums are added up in float64, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vigor_service.engine.ops.kernels.launch_triton import Tile, check_inputs, launch
from vigor_service.engine.ops.kernels.row_ranges import RowRanges

_GROUP = 8  # tiles of outputs that run near each other, so that they find the same inputs in the cache
# float32 products use no tensor cores.
TILES = {
    torch.bfloat16: Tile({"OUTPUTS": 128, "INPUTS": 256, "ROWS": 64, "GROUP": _GROUP}, num_warps=8, num_stages=3),
    torch.float16: Tile({"OUTPUTS": 128, "INPUTS": 256, "ROWS": 64, "GROUP": _GROUP}, num_warps=8, num_stages=3),
    torch.float32: Tile({"OUTPUTS": 64, "INPUTS": 64, "ROWS": 32, "GROUP": _GROUP}, num_warps=8, num_stages=2),
}


def product_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges, *, tile: Tile | None = None) -> Tensor:
    """Return what ``product_norm.product_norms`` returns, (B,), float64; float32 rows are multiplied in full float32.

    Raises:
        ValueError: the matrices do not fit each other, or have a dtype that kernels do not take.
        UnavailableError: the kernel cannot be compiled or launched here.
    """
    check_inputs(x_NI, gradient_NO)
    tile = tile or TILES[x_NI.dtype]
    num_inputs, num_outputs = x_NI.shape[1], gradient_NO.shape[1]
    num_tiles = triton.cdiv(num_outputs, tile.sizes["OUTPUTS"]) * triton.cdiv(num_inputs, tile.sizes["INPUTS"])
    partials_BP = x_NI.new_empty(len(ranges.bounds), num_tiles, dtype=torch.float32)
    launch(product_norm_kernel, x_NI, gradient_NO, ranges, partials_BP, tile)
    return partials_BP.sum(1, dtype=torch.float64)


@triton.jit
def product_norm_kernel(
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
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Write the sum of squares of one tile of one sequence's ``gradient.T @ x``."""
    number, sequence = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(bounds + 2 * sequence), tl.load(bounds + 2 * sequence + 1)
    tiles_of_inputs = tl.cdiv(num_inputs, INPUTS)
    output_tile, input_tile = tl.swizzle2d(
        number // tiles_of_inputs, number % tiles_of_inputs, tl.cdiv(num_outputs, OUTPUTS), tiles_of_inputs, GROUP
    )
    outputs = (output_tile * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    inputs = (input_tile * INPUTS + tl.arange(0, INPUTS)).to(tl.int64)
    tile = tl.zeros((OUTPUTS, INPUTS), dtype=tl.float32)
    for first in range(start, stop, ROWS):
        rows = first + tl.arange(0, ROWS)
        left = tl.load(
            gradient + rows[None, :] * gradient_row_stride + outputs[:, None] * gradient_column_stride,
            mask=(rows < stop)[None, :] & (outputs < num_outputs)[:, None],
            other=0.0,
        )
        right = tl.load(
            x + rows[:, None] * x_row_stride + inputs[None, :] * x_column_stride,
            mask=(rows < stop)[:, None] & (inputs < num_inputs)[None, :],
            other=0.0,
        )
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        tile = tl.dot(left, right, tile, input_precision="ieee")
    share = tl.sum(tl.sum(tile * tile, axis=1), axis=0)
    tl.store(partials + sequence * tl.num_programs(0) + number, share)
