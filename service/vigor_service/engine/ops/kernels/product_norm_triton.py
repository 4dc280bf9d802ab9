"""``‖GᵀA‖²`` per sequence through the weight's gradient, as a Triton kernel: the gradient is never in memory.

One program computes one tile of GᵀA of one sequence, squares and sums it in registers and writes one number. Partial
sums are added up in float64, in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vigor_service.engine.ops.kernels.launch_triton import check_inputs, compile_options, launching
from vigor_service.engine.ops.kernels.row_ranges import RowRanges


class Tile(NamedTuple):
    """What one program does at once: a part of the gradient, so many rows of the sequence at a time."""

    outputs: int
    inputs: int
    rows: int
    num_warps: int
    num_stages: int


# float32 products use no tensor cores.
TILES = {
    torch.bfloat16: Tile(outputs=128, inputs=256, rows=64, num_warps=8, num_stages=3),
    torch.float16: Tile(outputs=128, inputs=256, rows=64, num_warps=8, num_stages=3),
    torch.float32: Tile(outputs=64, inputs=64, rows=32, num_warps=8, num_stages=2),
}
_TILES_IN_A_GROUP = 8  # tiles of outputs that run near each other, so that they find the same inputs in the cache


def product_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges, *, tile: Tile | None = None) -> Tensor:
    """Equal ``product_norm.product_norms``, shape (B,), float64; float32 rows are multiplied in full float32.

    Raises:
        ValueError: the matrices do not fit each other, or have a dtype that kernels do not take.
        UnavailableError: the kernel cannot be compiled or launched here.
    """
    check_inputs(x_NI, gradient_NO)
    tile = tile or TILES[x_NI.dtype]
    num_inputs, num_outputs = x_NI.shape[1], gradient_NO.shape[1]
    num_tiles = triton.cdiv(num_outputs, tile.outputs) * triton.cdiv(num_inputs, tile.inputs)
    partials_BP = x_NI.new_empty(len(ranges.bounds), num_tiles, dtype=torch.float32)
    with launching("product_norm", x_NI):
        product_norm_kernel[(num_tiles, len(ranges.bounds))](
            x_NI,
            gradient_NO,
            ranges.bounds_B2,
            partials_BP,
            num_inputs,
            num_outputs,
            x_NI.stride(0),
            x_NI.stride(1),
            gradient_NO.stride(0),
            gradient_NO.stride(1),
            **constants(tile),
        )
    return partials_BP.sum(1, dtype=torch.float64)


def constants(tile: Tile) -> dict[str, Any]:
    """What the kernel is compiled for besides its arguments' types."""
    return {
        "OUTPUTS": tile.outputs,
        "INPUTS": tile.inputs,
        "ROWS": tile.rows,
        "GROUP": _TILES_IN_A_GROUP,
        **compile_options(tile.num_warps, tile.num_stages),
    }


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
