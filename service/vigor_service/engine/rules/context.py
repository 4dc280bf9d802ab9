"""The context of one batch: what the rules share while its single backward pass runs.

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
from vigor_service.engine.ops.hutchinson import SketchVectors
from vigor_service.engine.rules.shared_input import LinearInputs


class NormContext:
    """The batch, and the leaves whose "gradients" are the answer.

    Every measured operation passes a parameter's share of ``‖∇θ NLL_b‖²``, shape (B,), to autograd as if it were the
    gradient of the parameter's leaf; autograd adds the shares up in float64. All parameters have one leaf in common,
    ``squared_norms_B``, except for the parameters in ``apart``, which get a leaf each.
    """

    def __init__(
        self,
        batch: PackedBatch,
        *,
        tied_weight_VD: Tensor | None = None,
        apart: Mapping[nn.Parameter, str] | None = None,
        known_rows: KnownRows | None = None,
        sketch: SketchVectors | None = None,
        keeps_all: bool = False,
    ) -> None:
        self.batch = batch
        self.known_rows = known_rows or KnownRows({}, [], batch.num_tokens)
        self.tied_weight_VD = tied_weight_VD
        self._sketch = sketch
        self.squared_norms_B = self._new_leaf()
        self._leaves = {id(parameter): self._new_leaf() for parameter in apart or ()}
        self._names = {id(parameter): name for parameter, name in (apart or {}).items()}
        self.rematerialization = Rematerialization(is_off=keeps_all)
        self.linear_inputs = LinearInputs(self.rematerialization)
        # (KᵀH)_u, the gradient of a tied head's weight at the ids u of the sequence: head.py sets it for embedding.py
        self.tied_head_rows_UD: Tensor | None = None

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

    def rematerializing(self) -> AbstractContextManager[None]:
        """Return a context in which autograd keeps recipes of cheap results, not the results, unless ``keeps_all``."""
        if self.rematerialization.is_off:
            return nullcontext()
        return saved_tensors_hooks(self.rematerialization.keep, restore)

    def rows_of_sequences(self, tensor_ND: Tensor) -> Iterator[Tensor]:
        """Yield the rows (T, D) of each sequence in turn."""
        return (tensor_ND[rows] for rows in self.batch.token_slices)

    def signs_of(self, parameter: Tensor, weight_OI: Tensor, times: int = 1) -> Tensor | None:
        """Return the sketch vectors (times P, I) that estimate the weight's share; None: the share is exact."""
        return None if self._sketch is None else self._sketch.of(parameter, weight_OI, times)
