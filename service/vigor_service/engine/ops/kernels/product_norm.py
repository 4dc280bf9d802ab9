"""``‖GᵀA‖²`` per sequence through the weight's gradient itself, in torch, one sequence at a time.

Shapes: N packed rows, I inputs, O outputs, B sequences of T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vigor_service.engine.ops.gram import matmul_float32
from vigor_service.engine.ops.kernels.row_ranges import RowRanges
from vigor_service.engine.ops.sums import squared_norm


def product_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    """Return ``[(G.T @ A).square().sum() for A, G in sequences]``, shape (B,), float64."""
    pieces = zip(ranges.split(x_NI), ranges.split(gradient_NO), strict=True)
    return torch.stack([squared_norm(_product(x_TI, gradient_TO)) for x_TI, gradient_TO in pieces])


def _product(x_TI: Tensor, gradient_TO: Tensor) -> Tensor:
    """Return ``GᵀA``, rounded to bfloat16 if A is; float16 would overflow, so its product is kept in float32."""
    if x_TI.dtype == torch.float16:
        return matmul_float32(gradient_TO.T, x_TI)
    return gradient_TO.T @ x_TI
