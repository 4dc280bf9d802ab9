"""The matrix product of linear layers, by the library that is faster for its shape on this machine.

On a CPU torch's own ``linear`` uses MKL for float32, and oneDNN only for 16-bit dtypes. Which of the two is faster
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

# A primitive of oneDNN serves one shape. A batch has about ten shapes, and as many batches run at once as there are
# cores. The default of 1,024 only keeps shapes that never recur. oneDNN reads the variable at its first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

TORCH, ONEDNN = "torch", "onednn"
CHOICE = LibraryChoice()
"""The library choice of this process."""

_ROWS_OF_A_KERNEL = 8
"""Rows are padded to a multiple of this. For each number of rows that is not a multiple, oneDNN would generate 256 KiB
of code for each weight's shape, and keep it until the process ends (docs/decisions/0015-memory-over-many-requests.md).
"""
_MIN_PRODUCTS = 1 << 20
"""Number of multiplications below which torch computes a product: it takes less time than the choice of a library."""
_LONG_SUM = 8192
"""Number of terms of a sum above which oneDNN computes the product: MKL's error grows with this number."""
_SLICE = 1024
"""Number of terms that are added up in float32."""


def linear(x_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return ``F.linear(x_MI, weight_OI, bias_O)``; the weight may be any view, such as a transposed matrix."""
    if not _may_be_onednn(x_MI, weight_OI):
        return F.linear(x_MI, weight_OI, bias_O)
    by_onednn = partial(_onednn, x_MI, weight_OI, bias_O)
    if weight_OI.shape[1] > _LONG_SUM:
        return by_onednn()
    return _by_the_faster(x_MI, weight_OI, {ONEDNN: by_onednn, TORCH: partial(F.linear, x_MI, weight_OI, bias_O)})


def linear_of_long_sums(x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return ``x_MI.double() @ weight_OI.double().T`` with an error of about 1e-6, as needed if I is a vocabulary.

    MKL's kernel adds the products of a leftover row in a single sum, with an error of 2e-4 at I = 49,152 in float32.
    Slices that are added up in float64 have an error of 3e-6.
    """
    in_slices = partial(_sum_of_slices, x_MI, weight_OI)
    if not _may_be_onednn(x_MI, weight_OI):
        return in_slices()
    by_onednn = partial(_onednn, x_MI, weight_OI, None)
    return _by_the_faster(x_MI, weight_OI, {ONEDNN: lambda: by_onednn().double(), TORCH: in_slices})


def pad_rows(x_MI: Tensor) -> Tensor:
    """Return the rows; on a CPU, with the rows of zeros below them that oneDNN's ``linear`` needs."""
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
