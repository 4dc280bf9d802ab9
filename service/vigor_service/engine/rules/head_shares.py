"""Shares of the output head's parameters in the squared norm of each sequence.

With H (T, D) the head's input rows and K (T, V) the loss's gradient at the logits, the weight's gradient is KᵀH. A
sequence whose logits do not fit into memory at once comes in chunks c: the weight's gradient ``Σ_c K_cᵀ H_c`` is summed
in one (V, D) tensor. Shapes: R rows of a sequence or of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vigor_service.engine.ops.gram import matmul_float32
from vigor_service.engine.ops.hutchinson import estimated_share
from vigor_service.engine.ops.kernels.weight_norms import weight_norms
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import split, to_list
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.embedding import DistinctIds
from vigor_service.engine.rules.linear import weight_share

_TIMES_VECTORS = 16  # the head alone has a quarter of the squared norm: its error would dominate


@dataclass(frozen=True, slots=True)
class Piece:
    """Loss rows of one sequence: all of them, or one chunk if the sequence is long."""

    rows: slice
    is_chunk: bool = False
    is_last: bool = True


class HeadShares:
    """Collects each sequence's share, and for a tied embedding (KᵀH)_u of each distinct id u."""

    def __init__(self, weight_VD: Tensor, context: NormContext, *, measures_weight: bool, measures_bias: bool) -> None:
        self._weight_VD = weight_VD
        self._measures_weight, self._measures_bias = measures_weight, measures_bias
        self._signs_PD = context.signs_of(weight_VD, weight_VD, times=_TIMES_VECTORS)
        self._ids: list[Tensor] | None = None
        if context.tied_weight_VD is not None:
            distinct = DistinctIds(context.batch.input_ids_1N[0], context.batch)
            self._ids = list(split(distinct.id_U, to_list(distinct.sequence_U.bincount())))
        self._weight_shares: list[Tensor] = []
        self._bias_shares: list[Tensor] = []
        self._num_complete = 0
        self._tied_rows: list[Tensor] = []
        self._long: LongSequence | None = None

    def add(self, piece: Piece, hidden_RD: Tensor, gradient_RV: Tensor) -> None:
        """Add the next sequence, or the next chunk of one."""
        if piece.is_chunk:
            self._long = self._long or self._long_sequence()
            self._long.add(hidden_RD, gradient_RV)
            if piece.is_last:
                self._finish_long(self._long)
                self._long = None
            return
        if self._ids is not None:
            ids_u = self._ids[self._num_complete]
            self._tied_rows.append(matmul_float32(gradient_RV[:, ids_u].T, hidden_RD))
        if self._measures_weight:
            self._weight_shares.append(_weight_share(hidden_RD, gradient_RV, self._signs_PD))
        if self._measures_bias:
            self._bias_shares.append(_bias_share(gradient_RV))
        self._num_complete += 1

    def _long_sequence(self) -> LongSequence:
        return LongSequence(self._weight_VD, measures_weight=self._measures_weight, measures_bias=self._measures_bias)

    def _finish_long(self, sequence: LongSequence) -> None:
        if self._ids is not None:
            self._tied_rows.append(sequence.tied_rows(self._ids[self._num_complete]))
        if self._measures_weight:
            self._weight_shares.append(sequence.weight_share())
        if self._measures_bias:
            self._bias_shares.append(sequence.bias_share())
        self._num_complete += 1

    def weight_B(self) -> Tensor | None:
        """Return the weight's share of each sequence, in order; None if it is not measured."""
        return torch.stack(self._weight_shares) if self._weight_shares else None

    def bias_B(self) -> Tensor | None:
        """Return the bias's share of each sequence, in order; None if it is not measured."""
        return torch.stack(self._bias_shares) if self._bias_shares else None

    def tied_rows_UD(self) -> Tensor | None:
        """Return the rows of all sequences, in the order of ``DistinctIds``; None where no embedding is tied."""
        return None if self._ids is None else torch.cat(self._tied_rows)


def _weight_share(hidden_TD: Tensor, gradient_TV: Tensor, signs_PD: Tensor | None) -> Tensor:
    """Return the weight's share of ``‖∇‖²`` for one sequence, a float64 scalar; an estimate with sketch vectors."""
    if signs_PD is not None:
        return estimated_share(hidden_TD, gradient_TV, signs_PD)
    if hidden_TD.is_cuda:
        return weight_norms(hidden_TD, gradient_TV, [slice(0, len(hidden_TD))])[0]
    return weight_share(hidden_TD, gradient_TV)


def _bias_share(gradient_TV: Tensor) -> Tensor:
    """Return the bias's share of ``‖∇‖²`` for one sequence, a float64 scalar."""
    return squared_norm(gradient_TV.float().sum(0))


class LongSequence:
    """Gradients of the head's measured parameters, summed over the chunks of one sequence in float32 or better."""

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
        """Return ``‖KᵀH‖²``, a float64 scalar; exact even if norms are estimated, since the gradient is in memory.

        Raises:
            ValueError: the weight is not measured.
        """
        return squared_norm(_measured(self._weight_gradient_VD, "weight"))

    def bias_share(self) -> Tensor:
        """Return ``‖Σ_t k_t‖²``, a float64 scalar.

        Raises:
            ValueError: the bias is not measured.
        """
        return squared_norm(_measured(self._bias_gradient_V, "bias"))

    def tied_rows(self, ids_U: Tensor) -> Tensor:
        """Return ``(KᵀH)_u`` for each id u, shape (U, D).

        Raises:
            ValueError: the weight is not measured; a tied weight always is.
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
