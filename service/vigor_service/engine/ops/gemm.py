"""The matrix product of linear layers, by the fastest library that torch brings along.

On two AVX-512 cores oneDNN took 0.6 to 0.9 of MKL's time for 128 to 512 rows in float32; torch's own ``linear``
uses oneDNN for 16-bit types only (docs/decisions/0008-onednn-for-float32.md).
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional as F

# A primitive of oneDNN serves one shape; a batch has about ten, and as many batches run at once as there are cores.
# The default of 1,024 only keeps shapes that never come again. Read at oneDNN's first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

_ROWS_OF_A_KERNEL = 8
"""oneDNN generates code for every other number of rows, 256 KiB for each weight's shape, and keeps it until the process
ends (docs/decisions/0015-memory-over-many-requests.md)."""


def linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``F.linear(x_MI, weight_OI, bias_O)``; the weight may be any view, such as a transposed matrix."""
    if not prefers_onednn(x_MI, weight_OI):
        return F.linear(x_MI, weight_OI, bias_O)
    rows_MI = x_MI.flatten(0, -2)
    padded_PI = pad_rows(rows_MI)
    product_PO = torch.ops.mkldnn._linear_pointwise(padded_PI, weight_OI, bias_O, "none", [], "")
    return product_PO[: len(rows_MI)].view(*x_MI.shape[:-1], -1)


def pad_rows(x_MI: Tensor) -> Tensor:
    """Return the rows with as many zeros below them as ``linear`` needs, if it needs any on this device."""
    num_missing = -len(x_MI) % _ROWS_OF_A_KERNEL
    return F.pad(x_MI, (0, 0, 0, num_missing)) if num_missing and x_MI.device.type == "cpu" else x_MI


def prefers_onednn(x_MI: Tensor, weight_OI: Tensor) -> bool:
    """Whether ``linear`` is oneDNN's."""
    is_plain = x_MI.device.type == "cpu" and x_MI.dtype == weight_OI.dtype == torch.float32
    return is_plain and _HAS_ONEDNN and x_MI.numel() > 0


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
