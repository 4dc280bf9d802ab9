"""One batch being measured: what the rules share while its single backward pass runs.

Shapes: B sequences, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vigor_service.engine.linear_input import LinearInputs
from vigor_service.engine.packing import PackedBatch
from vigor_service.engine.probes import Probes
from vigor_service.engine.prompts import KnownRows
from vigor_service.engine.rematerialization import Rematerialization, restore


class Measurement:
    """The batch, and the leaf whose "gradient" is the answer.

    Every measured operation hands the share of ``‖∇θ NLL_b‖²`` that its parameters have, shape (B,), to autograd as
    if it were the gradient of ``squared_norms_B``; autograd adds the shares up in float64.
    """

    def __init__(
        self,
        batch: PackedBatch,
        *,
        tied_weight_VD: Tensor | None = None,
        known_rows: KnownRows | None = None,
        probes: Probes | None = None,
        keeps_everything: bool = False,
    ) -> None:
        self.batch = batch
        self.known_rows = known_rows or KnownRows({}, [], batch.num_tokens)
        self.tied_weight_VD = tied_weight_VD
        self._probes = probes
        self.squared_norms_B = torch.zeros(
            batch.num_sequences, dtype=torch.float64, device=batch.input_ids_1N.device, requires_grad=True
        )
        self.rematerialization = Rematerialization(is_off=keeps_everything)
        self.linear_inputs = LinearInputs(self.rematerialization)
        self.tied_head_rows_UD: Tensor | None = (
            None  # the head's gradient at the ids that the prompt and completion hold
        )

    def keeping_little(self) -> AbstractContextManager[None]:
        """In the forward pass, have autograd keep how a cheap result is computed, not the result, if so wished."""
        if self.rematerialization.is_off:
            return nullcontext()
        return saved_tensors_hooks(self.rematerialization.keep, restore)

    def rows_of_sequences(self, tensor_ND: Tensor) -> Iterator[Tensor]:
        """Yield the rows (T, D) of each sequence in turn."""
        return (tensor_ND[rows] for rows in self.batch.token_slices)

    def signs_of(self, parameter: Tensor, weight_OI: Tensor, times: int = 1) -> Tensor | None:
        """Return the probes (times P, I) that estimate the weight's share; None: it is exact."""
        return None if self._probes is None else self._probes.of(parameter, weight_OI, times)
