"""Sums of squares for which float32 is not precise enough."""

from __future__ import annotations

import torch
from torch import Tensor

from vigor_service.engine.ops.typed_torch import vector_norm

_NORM_ELEMENTS = 1024


def squared_norm(tensor: Tensor) -> Tensor:
    """Return the sum of squares as a float64 scalar, without a float64 copy of the tensor.

    On a CPU, sums are in float32 within parts of 1,024 elements.

    A CPU's own norm of a 262,144 × 640 matrix in float32 is 2 % too small.
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    if tensor.is_cuda:
        return vector_norm(tensor, dtype=dtype).double().square()
    elements = tensor.flatten()
    in_parts = elements.numel() - elements.numel() % _NORM_ELEMENTS
    parts = elements[:in_parts].view(-1, _NORM_ELEMENTS), elements[None, in_parts:]
    norms = torch.cat([vector_norm(part, dim=-1, dtype=dtype) for part in parts])
    return norms.double().square().sum()
