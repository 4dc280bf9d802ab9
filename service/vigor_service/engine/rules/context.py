"""One batch being measured: what the rules share while its single backward pass runs.

Shapes: B sequences, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vigor_service.engine.batching.packing import PackedBatch
from vigor_service.engine.batching.shared_prefixes import KnownRows
from vigor_service.engine.memory.rematerialization import Rematerialization, restore
from vigor_service.engine.ops.hutchinson import Probes
from vigor_service.engine.rules.shared_input import LinearInputs


class NormContext:
    """The batch, and the leaves whose "gradients" are the answer.

    Every measured operation hands the share of ``‖∇θ NLL_b‖²`` that a parameter has, shape (B,), to autograd as
    if it were the gradient of the parameter's leaf; autograd adds the shares up in float64. All parameters have one
    leaf, ``squared_norms_B``, unless ``apart`` names parameters that get a leaf each.
    """

    def __init__(
        self,
        batch: PackedBatch,
        *,
        tied_weight_VD: Tensor | None = None,
        apart: Mapping[nn.Parameter, str] | None = None,
        known_rows: KnownRows | None = None,
        probes: Probes | None = None,
        keeps_everything: bool = False,
    ) -> None:
        self.batch = batch
        self.known_rows = known_rows or KnownRows({}, [], batch.num_tokens)
        self.tied_weight_VD = tied_weight_VD
        self._probes = probes
        self.squared_norms_B = self._new_leaf()
        self._leaves = {id(parameter): self._new_leaf() for parameter in apart or ()}
        self._names = {id(parameter): name for parameter, name in (apart or {}).items()}
        self.rematerialization = Rematerialization(is_off=keeps_everything)
        self.linear_inputs = LinearInputs(self.rematerialization)
        self.tied_head_rows_UD: Tensor | None = (
            None  # the head's gradient at the ids that the prompt and completion hold
        )

    def leaf_of(self, parameter: Tensor) -> Tensor:
        """Return the leaf that collects the parameter's share."""
        return self._leaves.get(id(parameter), self.squared_norms_B)

    def leaves(self) -> list[Tensor]:
        """Return all leaves: the common one first, then those of ``apart`` in its order."""
        return [self.squared_norms_B, *self._leaves.values()]

    def shares_apart(self, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """Return name -> share (B,) of the parameters ``apart``, given the gradients of ``leaves()``."""
        shares = zip(self._names.values(), gradients[1:], strict=True)
        return {name: torch.zeros_like(self.squared_norms_B) if share is None else share for name, share in shares}

    def _new_leaf(self) -> Tensor:
        device = self.batch.input_ids_1N.device
        return torch.zeros(self.batch.num_sequences, dtype=torch.float64, device=device, requires_grad=True)

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
