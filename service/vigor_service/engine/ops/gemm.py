"""The matrix product of linear layers, by the library that is faster for its shape on this machine.

In float32 on a CPU torch's own ``linear`` uses MKL, and oneDNN for 16-bit types only. Which of the two is faster
depends on the processor and on the shape (docs/decisions/0088-the-faster-library-is-measured.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from vigor_service.engine.ops.library_choice import LibraryChoice, Product, product_class
from vigor_service.engine.ops.typed_torch import split

# A primitive of oneDNN serves one shape; a batch has about ten, and as many batches run at once as there are cores.
# The default of 1,024 only keeps shapes that never come again. Read at oneDNN's first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

TORCH, ONEDNN = "torch", "onednn"
CHOICE = LibraryChoice()
"""That of this process."""

_ROWS_OF_A_KERNEL = 8
"""oneDNN generates code for every other number of rows, 256 KiB for each weight's shape, and keeps it until the process
ends (docs/decisions/0015-memory-over-many-requests.md)."""
_MIN_PRODUCTS = 1 << 20
"""Multiplications below which a product is torch's: it takes less time than to look for a better one."""
_LONG_SUM = 8192
"""Products that are added up, above which oneDNN does it: MKL's error grows with their number."""
_SLICE = 1024
"""Of them, that are added up in float32."""


def linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``F.linear(x_MI, weight_OI, bias_O)``; the weight may be any view, such as a transposed matrix."""
    if not _may_be_onednn(x_MI, weight_OI):
        return F.linear(x_MI, weight_OI, bias_O)
    by_onednn = partial(_onednn, x_MI, weight_OI, bias_O)
    if weight_OI.shape[1] > _LONG_SUM:
        return by_onednn()
    return _by_the_faster(x_MI, weight_OI, {ONEDNN: by_onednn, TORCH: partial(F.linear, x_MI, weight_OI, bias_O)})


def linear_of_long_sums(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """``x_MI.double() @ weight_OI.double().T`` with an error of about 1e-6, as a sum over a vocabulary I needs it.

    MKL's kernel adds a leftover row's products up in a single sum: an error of 2e-4 at I = 49,152 in float32, where
    slices, added up in float64, have 3e-6.
    """
    in_slices = partial(_sum_of_slices, x_MI, weight_OI)
    if not _may_be_onednn(x_MI, weight_OI):
        return in_slices()
    by_onednn = partial(_onednn, x_MI, weight_OI, None)
    return _by_the_faster(x_MI, weight_OI, {ONEDNN: lambda: by_onednn().double(), TORCH: in_slices})


def pad_rows(x_MI: Tensor) -> Tensor:
    """Return the rows with as many zeros below them as oneDNN's ``linear`` needs, if it needs any on this device."""
    num_missing = -len(x_MI) % _ROWS_OF_A_KERNEL
    return F.pad(x_MI, (0, 0, 0, num_missing)) if num_missing and x_MI.device.type == "cpu" else x_MI


def _by_the_faster(x_MI: Tensor, weight_OI: Tensor, libraries: Mapping[str, Product]) -> Tensor:
    num_rows = x_MI.numel() // x_MI.shape[-1]
    if num_rows * weight_OI.numel() < _MIN_PRODUCTS and CHOICE.forced is None:
        return libraries[TORCH]()
    return CHOICE.run(product_class(num_rows, weight_OI), num_rows, libraries)


def _may_be_onednn(x_MI: Tensor, weight_OI: Tensor) -> bool:
    is_plain = x_MI.device.type == "cpu" and x_MI.dtype == weight_OI.dtype == torch.float32
    return is_plain and _HAS_ONEDNN and x_MI.numel() > 0


def _onednn(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    rows_MI = x_MI.flatten(0, -2)
    product_PO = torch.ops.mkldnn._linear_pointwise(pad_rows(rows_MI), weight_OI, bias_O, "none", [], "")
    return product_PO[: len(rows_MI)].view(*x_MI.shape[:-1], -1)


def _sum_of_slices(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    product_MO = x_MI.new_zeros(len(x_MI), len(weight_OI), dtype=torch.float64)
    for x_MS, weight_OS in zip(split(x_MI, _SLICE, dim=1), split(weight_OI, _SLICE, dim=1), strict=True):
        product_MO += x_MS @ weight_OS.T
    return product_MO


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
