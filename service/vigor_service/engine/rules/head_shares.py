"""The head's share of a sequence with so many loss rows that their logits are not in memory at once.

With the rows in chunks c, the weight's gradient is ``Σ_c K_cᵀ H_c``: it is summed up in one (V, D) tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vigor_service.engine.ops.gram import matmul_float32
from vigor_service.engine.ops.sums import squared_norm


class LongSequence:
    """Sums over the chunks of one sequence, in float32 or better, of what is measured."""

    def __init__(self, weight_VD: Tensor, *, measures_weight: bool, measures_bias: bool) -> None:
        dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        self._weight_gradient_VD = torch.zeros_like(weight_VD, dtype=dtype) if measures_weight else None
        self._bias_gradient_V = weight_VD.new_zeros(len(weight_VD), dtype=dtype) if measures_bias else None

    def add(self, hidden_RD: Tensor, gradient_RV: Tensor) -> None:
        """Add the next R rows: the head's inputs, and the loss's gradient at its logits."""
        if self._weight_gradient_VD is not None:
            _add_product_(self._weight_gradient_VD, gradient_RV.T, hidden_RD)
        if self._bias_gradient_V is not None:
            self._bias_gradient_V += gradient_RV.sum(0, dtype=self._bias_gradient_V.dtype)

    def weight_share(self) -> Tensor:
        """``‖KᵀH‖²``, a float64 scalar; exact even under probes: the gradient is there.

        Raises:
            ValueError: the weight is not measured.
        """
        return squared_norm(_measured(self._weight_gradient_VD, "weight"))

    def bias_share(self) -> Tensor:
        """``‖Σ_t k_t‖²``, a float64 scalar.

        Raises:
            ValueError: the bias is not measured.
        """
        return squared_norm(_measured(self._bias_gradient_V, "bias"))

    def tied_rows(self, ids_U: Tensor) -> Tensor:
        """Return ``(KᵀH)_u`` for each id u, shape (U, D).

        Raises:
            ValueError: the weight is not measured; one that is tied always is.
        """
        return _measured(self._weight_gradient_VD, "weight")[ids_U]


def _measured(gradient: Tensor | None, name: str) -> Tensor:
    if gradient is None:
        raise ValueError(f"the head's {name} is not measured")
    return gradient


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if right.dtype == total.dtype:
        total.addmm_(left, right)  # without a tensor for the product
    else:
        total += matmul_float32(left, right)
