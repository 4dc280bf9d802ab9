"""One batch being measured: what the rules share while its single backward pass runs.

Shapes: B sequences, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vigor_service.engine.packing import PackedBatch


class Measurement:
    """The batch, and the leaf whose "gradient" is the answer.

    Every measured operation hands the share of ``‖∇θ NLL_b‖²`` that its parameters have, shape (B,), to autograd as
    if it were the gradient of ``squared_norms_B``; autograd adds the shares up in float64.
    """

    def __init__(self, batch: PackedBatch, *, tied_weight_VD: Tensor | None = None) -> None:
        self.batch = batch
        self.tied_weight_VD = tied_weight_VD
        self.squared_norms_B = torch.zeros(
            batch.num_sequences, dtype=torch.float64, device=batch.input_ids_1N.device, requires_grad=True
        )
        self.grams = GramCache()
        self.tied_head_rows_UD: Tensor | None = (
            None  # the head's gradient at the ids that the prompt and completion hold
        )

    def rows_of_sequences(self, tensor_ND: Tensor) -> Iterator[Tensor]:
        """Yield the rows (T, D) of each sequence in turn."""
        return (tensor_ND[rows] for rows in self.batch.token_slices)


class GramCache:
    """AAᵀ per sequence for the last input A seen: q, k and v share theirs, and so do gate and up."""

    def __init__(self) -> None:
        self._input: Tensor | None = None
        self._grams: dict[int, Tensor] = {}

    def gram(self, input_ND: Tensor, sequence: int, rows_TD: Tensor) -> Tensor:
        """Return ``rows_TD @ rows_TD.T`` in float32, where ``rows_TD`` are the input's rows of that sequence."""
        if not self._is_last_input(input_ND):
            # Holding the tensor keeps its address from being reused while the cache is alive.
            self._input, self._grams = input_ND, {}
        if sequence not in self._grams:
            self._grams[sequence] = matmul_float32(rows_TD, rows_TD.T)
        return self._grams[sequence]

    def _is_last_input(self, input_ND: Tensor) -> bool:
        last = self._input
        return last is not None and last.data_ptr() == input_ND.data_ptr() and last.shape == input_ND.shape


def matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """``left.float() @ right.float()``, with 16-bit operands left as they are where the device can do so."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
