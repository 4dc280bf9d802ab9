"""Embedding tables: token embeddings and learned positions.

Per sequence the table's gradient has one row for each distinct id u: Ē_u = Σ_{t: id_t = u} e_t, with e_t the gradient
at the lookup's output. One token may occur many times, so rows are summed before they are squared. A table that
is also the output head adds ``2 Σ_u ⟨Ē_u, (KᵀH)_u⟩`` (see head.py): the two uses have one summed gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vigor_service.engine.batching.packing import PackedBatch
from vigor_service.engine.ops.typed_torch import apply, unique_rows
from vigor_service.engine.rules.context import NormContext


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """A call of ``weight[ids]``, in which the row ``padding_idx`` gets no gradient."""

    ids: Tensor
    weight: Tensor
    padding_idx: int | None
    rule: str = "embedding"

    def parameters(self) -> list[Tensor]:
        return [self.weight]

    def token_axes(self, num_tokens: int) -> list[int]:
        return [self.ids.dim() - 1] if tuple(self.ids.shape) in ((num_tokens,), (1, num_tokens)) else []

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:  # noqa: ARG002
        leaf_B = leaf_of(self.weight)
        if leaf_B is None:
            return F.embedding(self.ids, self.weight, self.padding_idx)
        is_tied = self.weight is context.tied_weight_VD
        return apply(_Embedding, leaf_B, self.ids, self.weight, self.padding_idx, context, is_tied)


def from_embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001 - of no meaning without max_norm
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001 - how a gradient is stored, not what it is
) -> EmbeddingCall | None:
    """Recognise ``F.embedding``, unless it renormalises rows or rescales gradients."""
    return None if max_norm is not None or scale_grad_by_freq else EmbeddingCall(input, weight, padding_idx)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        leaf_B: Tensor,  # noqa: ARG004 - its gradient is the result
        ids: Tensor,
        weight_VD: Tensor,
        padding_idx: int | None,
        context: NormContext,
        is_tied: bool,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_idx, ctx.context, ctx.is_tied = padding_idx, context, is_tied
        return F.embedding(ids, weight_VD, padding_idx)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = output_gradients
        (ids,) = ctx.saved_tensors
        distinct = DistinctIds(ids.flatten(), ctx.context.batch)
        gradient_ND = gradient.flatten(0, -2).float()
        if ctx.padding_idx is not None:
            gradient_ND = gradient_ND.masked_fill((ids.flatten() == ctx.padding_idx)[:, None], 0.0)
        sums_UD = distinct.sum_rows(gradient_ND)
        other_UD = sums_UD + 2 * ctx.context.tied_head_rows_UD if ctx.is_tied else sums_UD
        return distinct.sum_sequences((sums_UD * other_UD).sum(-1)), None, None, None, None, None


class DistinctIds:
    """The U distinct (sequence, id) pairs among N tokens, ordered by sequence, then id."""

    def __init__(self, ids_N: Tensor, batch: PackedBatch) -> None:
        sequence_N = batch.sequence_of_token_N()
        pairs_U2, self._pair_of_token_N = unique_rows(torch.stack([sequence_N, ids_N], -1))
        self.sequence_U, self.id_U = pairs_U2.unbind(-1)
        self._num_sequences = batch.num_sequences

    def sum_rows(self, rows_ND: Tensor) -> Tensor:
        """Sum the rows of equal pairs: (N, D) to (U, D)."""
        sums_UD = rows_ND.new_zeros(len(self.id_U), rows_ND.shape[1])
        return sums_UD.index_add_(0, self._pair_of_token_N, rows_ND)

    def sum_sequences(self, shares_U: Tensor) -> Tensor:
        """Sum the shares of each sequence: (U,) to (B,), in float64."""
        sums_B = torch.zeros(self._num_sequences, dtype=torch.float64, device=shares_U.device)
        return sums_B.index_add_(0, self.sequence_U, shares_U.double())
