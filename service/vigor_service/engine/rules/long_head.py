"""The head's share of a sequence with so many loss rows that their logits are not in memory at once.

With the rows in chunks c, the weight's gradient is ``Σ_c K_cᵀ H_c``: it is summed up in one (V, D) tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vigor_service.engine.grams import matmul_float32
from vigor_service.engine.rules.linear import squared_norm


class LongSequence:
    """Sums over the chunks of one sequence, in float32 or better."""

    def __init__(self, weight_VD: Tensor) -> None:
        dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        self._weight_gradient_VD = torch.zeros_like(weight_VD, dtype=dtype)
        self._bias_gradient_V = weight_VD.new_zeros(len(weight_VD), dtype=dtype)

    def add(self, hidden_RD: Tensor, gradient_RV: Tensor) -> None:
        """Add the next R rows: the head's inputs, and the loss's gradient at its logits."""
        if hidden_RD.dtype == self._weight_gradient_VD.dtype:
            self._weight_gradient_VD.addmm_(gradient_RV.T, hidden_RD)
        else:
            self._weight_gradient_VD += matmul_float32(gradient_RV.T, hidden_RD)
        self._bias_gradient_V += gradient_RV.sum(0, dtype=self._bias_gradient_V.dtype)

    def share(self, *, of_weight: bool, of_bias: bool) -> Tensor:
        """``‖KᵀH‖²``, ``‖Σ_t k_t‖²`` or both, a float64 scalar; exact even under probes: the gradient is there."""
        share = torch.zeros((), dtype=torch.float64, device=self._bias_gradient_V.device)
        if of_weight:
            share = share + squared_norm(self._weight_gradient_VD)
        return share + squared_norm(self._bias_gradient_V) if of_bias else share

    def tied_rows(self, ids_U: Tensor) -> Tensor:
        """Return ``(KᵀH)_u`` for each id u, shape (U, D)."""
        return self._weight_gradient_VD[ids_U]
