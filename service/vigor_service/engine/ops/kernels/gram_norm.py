"""``‖GᵀA‖²`` per sequence through Gram matrices, in torch: ``Σ_ts (AAᵀ)_ts (GGᵀ)_ts``.

A few sequences are computed at a time, padded with rows of zeros, which add nothing. Shapes: N packed rows, I inputs,
O outputs, B sequences of up to T rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vigor_service.engine.ops.kernels.row_ranges import RowRanges

_GRAM_ELEMENTS_AT_ONCE = 2**26  # 256 MiB in float32, or one sequence that has more


def gram_norms(x_NI: Tensor, gradient_NO: Tensor, ranges: RowRanges) -> Tensor:
    """Return ``[((A @ A.T) * (G @ G.T)).sum() for A, G in sequences]``, shape (B,), float64.

    Products of 16-bit rows are accumulated and kept in float32, and so is the sum along a row. Rows are summed in
    float64.
    """
    size = max(1, _GRAM_ELEMENTS_AT_ONCE // ranges.longest**2)
    rows, gradients = ranges.split(x_NI), ranges.split(gradient_NO)
    shares = [
        _padded_gram_norms(pad_sequence(rows[b : b + size], True), pad_sequence(gradients[b : b + size], True))
        for b in range(0, len(rows), size)
    ]
    return torch.cat(shares)


def _padded_gram_norms(x_BTI: Tensor, gradient_BTO: Tensor) -> Tensor:
    row_sums_BT = _grams(gradient_BTO).mul_(_grams(x_BTI)).sum(-1)
    return row_sums_BT.sum(-1, dtype=torch.float64)


def _grams(rows_BTD: Tensor) -> Tensor:
    """Return ``rows @ rows.T`` per sequence, in float32 for 16-bit rows."""
    if rows_BTD.dtype in (torch.float32, torch.float64):
        return rows_BTD @ rows_BTD.mT
    if rows_BTD.is_cuda:
        return torch.bmm(rows_BTD, rows_BTD.mT, out_dtype=torch.float32)
    return rows_BTD.float() @ rows_BTD.float().mT
