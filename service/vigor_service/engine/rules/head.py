"""The output head with the loss: logits, gradient and norm, a few sequences at a time.

The gradient of a loss row at its logits is softmax - onehot, known as soon as the logits are; so the head needs no
graph, and the logits of a bounded number of rows exist at a time. With H (T, D) the head's input rows and K (T, V) the
logit gradients, the weight's gradient is KᵀH; a head tied to the embedding leaves (KᵀH)_u for the ids u of the sequence
to the embedding's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vigor_service.engine.ops import gemm
from vigor_service.engine.ops.gram import matmul_float32
from vigor_service.engine.ops.hutchinson import estimated_share
from vigor_service.engine.ops.kernels.weight_norms import weight_norms
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.embedding import DistinctIds
from vigor_service.engine.rules.head_chunks import LongSequence
from vigor_service.engine.rules.linear import gram_is_cheaper, weight_share
from vigor_service.engine.rules.softmax import softmax_gradient

_SLICE = 1024  # vocabulary entries
_LARGE = 2**-5  # of a row's gradient; softmax has at most 32 such entries
_ROWS_IN_CACHE = 8
_ROWS_ON_GPU = 512  # of which float32 copies exist
_PROBES_TIMES = 16  # the head alone has a quarter of the squared norm: its error would be all the error there is
# A matrix product of fewer rows with the vocabulary runs below the machine's rate.
_ROWS_AT_ONCE_CPU = 384
_ROWS_AT_ONCE_GPU = 2048


@dataclass(frozen=True, slots=True)
class Head:
    """``logits = softcap tanh(scale (h @ weight.T + bias) / softcap)``."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    measures_weight: bool
    measures_bias: bool

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return the logits (T, V) in float32."""
        return self.transform(self.raw_logits(hidden_TD).float())

    def raw_logits(self, hidden_TD: Tensor) -> Tensor:
        """``h @ weight.T + bias``, in the model's dtype."""
        return gemm.linear(hidden_TD, self.weight_VD, self.bias_V)

    def transform(self, raw_TV: Tensor) -> Tensor:
        """Scale and cap raw logits."""
        scaled_TV = raw_TV if self.scale == 1.0 else raw_TV * self.scale
        return scaled_TV if self.softcap is None else torch.tanh(scaled_TV / self.softcap) * self.softcap

    def raw_gradient_(self, logits_TV: Tensor, gradient_TV: Tensor) -> Tensor:
        """Turn, in place, the gradient at the logits into the gradient at the raw logits."""
        if self.softcap is not None:
            gradient_TV *= 1 - (logits_TV / self.softcap).square()
        return gradient_TV if self.scale == 1.0 else gradient_TV.mul_(self.scale)


def logit_transforms(config: PreTrainedConfig) -> list[tuple[float, float | None]]:
    """Return what a model may do to its logits, by the names that transformers' configs use: pairs (scale, softcap).

    The most is first; the last does nothing, as a model of images and text may leave out what its text model does.
    """
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite; the scales are Cohere's and Falcon-H1's
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    found = [(scale / divisor, softcap), (scale / divisor, None), (1.0, softcap), (1.0, None)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class HeadSignals:
    """Per loss row: negative log-likelihood, entropy, self-certainty. Each of shape (M,)."""

    nll_M: Tensor
    entropy_M: Tensor
    self_certainty_M: Tensor


def head_loss(hidden_MD: Tensor, head: Head, measurement: NormContext) -> tuple[Tensor, HeadSignals]:
    """Return the sum of the negative log-likelihoods of all loss rows, and the signals of each row.

    The sum equals ``F.cross_entropy(head.logits(hidden_MD), targets_M, reduction="sum")``; its backward pass adds the
    head's share to the measurement.
    """
    total, nll_M, entropy_M, certainty_M = _HeadLoss.apply(  # pyright: ignore[reportGeneralTypeIssues] - apply is untyped
        hidden_MD,
        measurement.leaf_of(head.weight_VD) if head.measures_weight else None,
        measurement.leaf_of(head.bias_V) if head.bias_V is not None and head.measures_bias else None,
        head,
        measurement,
    )
    return total, HeadSignals(nll_M, entropy_M, certainty_M)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden_MD: Tensor,
        weight_leaf_B: Tensor | None,  # noqa: ARG004 - the leaves' gradients are the result
        bias_leaf_B: Tensor | None,  # noqa: ARG004
        head: Head,
        measurement: NormContext,
    ) -> tuple[Tensor, ...]:
        hidden_gradient_MD = torch.empty_like(hidden_MD)
        signals_3M = hidden_MD.new_empty(3, len(hidden_MD), dtype=torch.float32)
        shares = _Shares(head, measurement)
        for bundle in _bundles(measurement.batch.loss_slices, head, hidden_MD.device):
            rows = slice(bundle[0].rows.start, bundle[-1].rows.stop)
            num_rows = rows.stop - rows.start
            padded_PV = head.raw_logits(gemm.pad_rows(hidden_MD[rows]))  # here, or the product below would copy logits
            gradient_RV = padded_PV[:num_rows]
            padded_PV[num_rows:] = 0
            signals_3M[:, rows] = _to_gradient_(head, gradient_RV, measurement.batch.targets_M[rows])
            hidden_gradient_MD[rows] = hidden_gradient(padded_PV, head.weight_VD)[:num_rows]
            for piece in bundle:
                own = slice(piece.rows.start - rows.start, piece.rows.stop - rows.start)
                shares.add(piece, hidden_MD[piece.rows], gradient_RV[own])
        measurement.tied_head_rows_UD = shares.tied_rows_UD()
        ctx.save_for_backward(hidden_gradient_MD, shares.weight_B(), shares.bias_B())
        ctx.mark_non_differentiable(*signals_3M.unbind())
        return signals_3M[0].sum(), *signals_3M.unbind()

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden_gradient_MD, weight_shares_B, bias_shares_B = ctx.saved_tensors
        hidden_gradient_MD = output_gradients[0].to(hidden_gradient_MD.dtype) * hidden_gradient_MD
        return hidden_gradient_MD, weight_shares_B, bias_shares_B, None, None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Loss rows of one sequence: all of them, or a chunk of a long one's."""

    rows: slice
    is_chunk: bool = False
    is_last: bool = True


def _bundles(loss_slices: list[slice], head: Head, device: torch.device) -> list[list[_Piece]]:
    """Split all loss rows, in order, into bundles: whole sequences together, or one chunk of a long sequence.

    A bundle has a bounded number of rows, or one sequence whose norm costs less from Gram matrices of all its rows.
    """
    most = _ROWS_AT_ONCE_CPU if device.type == "cpu" else _ROWS_AT_ONCE_GPU
    bundles: list[list[_Piece]] = []
    room = 0
    for rows in loss_slices:
        num_rows = rows.stop - rows.start
        if num_rows > most and not gram_is_cheaper(num_rows, *head.weight_VD.shape):
            bundles += [[piece] for piece in _chunks(rows, most)]
            room = 0
        elif num_rows > room:
            bundles.append([_Piece(rows)])
            room = most - num_rows
        else:
            bundles[-1].append(_Piece(rows))
            room -= num_rows
    return bundles


def _chunks(rows: slice, size: int) -> list[_Piece]:
    starts = range(rows.start, rows.stop, size)
    return [
        _Piece(slice(start, min(start + size, rows.stop)), is_chunk=True, is_last=start == starts[-1])
        for start in starts
    ]


def _to_gradient_(head: Head, raw_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Overwrite raw logits by the summed loss's gradient at them; return NLL, entropy, self-certainty, shape (3, T).

    A few rows at a time on a CPU: what is computed of them stays in its cache.
    """
    num_rows = _ROWS_ON_GPU if raw_TV.is_cuda else _ROWS_IN_CACHE
    dtype = torch.promote_types(raw_TV.dtype, torch.float32)
    signals: list[Tensor] = []
    for raw_RV, targets_R in zip(raw_TV.split(num_rows), targets_T.split(num_rows), strict=True):
        logits_RV = head.transform(raw_RV.to(dtype))
        gradient_RV, signals_3R = softmax_gradient(logits_RV, targets_R)
        raw_RV.copy_(head.raw_gradient_(logits_RV, gradient_RV))
        signals.append(signals_3R)
    return torch.cat(signals, dim=1)


def hidden_gradient(gradient_TV: Tensor, weight_VD: Tensor) -> Tensor:
    """``gradient_TV @ weight_VD``; leaves the gradient as it was.

    A CPU's libraries add a row's V products up one after the other. Next to an entry of about one, such as the
    target's, float32 drops many thousands of small ones; so large entries are added apart, in float64.
    """
    if gradient_TV.is_cuda:
        return gemm.linear(gradient_TV, weight_VD.T)
    rows_K, ids_K = _large_entries(gradient_TV)
    values_K = gradient_TV[rows_K, ids_K]
    gradient_TV[rows_K, ids_K] = 0
    hidden_gradient_TD = _small_products(gradient_TV, weight_VD)
    gradient_TV[rows_K, ids_K] = values_K
    hidden_gradient_TD.index_add_(0, rows_K, values_K.double()[:, None] * weight_VD[ids_K])
    return hidden_gradient_TD.to(gradient_TV.dtype)


def _large_entries(gradient_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and id of each entry above ``_LARGE``: looked for where a slice's norm, which costs little, is."""
    norms_ST = torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in gradient_TV.split(_SLICE, dim=1)])
    slices_J, rows_J = (norms_ST > _LARGE).nonzero(as_tuple=True)
    ids_JS = slices_J[:, None] * _SLICE + torch.arange(_SLICE, device=gradient_TV.device)
    rows_JS, num_ids = rows_J[:, None].expand_as(ids_JS), gradient_TV.shape[1]
    entries_JS = gradient_TV[rows_JS, ids_JS.clamp_max(num_ids - 1)]
    is_large_JS = (entries_JS.abs() > _LARGE) & (ids_JS < num_ids)
    return rows_JS[is_large_JS], ids_JS[is_large_JS]


def _small_products(gradient_TV: Tensor, weight_VD: Tensor) -> Tensor:
    """``gradient_TV @ weight_VD`` in float64, by oneDNN, or where MKL would do it in slices of the vocabulary.

    MKL's kernel adds a leftover row's V products up in a single sum: an error of 2e-4 at V = 49,152 in float32, where
    slices have 3e-6 and take no longer.
    """
    if gemm.prefers_onednn(gradient_TV, weight_VD):
        return gemm.linear(gradient_TV, weight_VD.T).double()
    slices = zip(gradient_TV.split(_SLICE, dim=1), weight_VD.split(_SLICE), strict=True)
    hidden_gradient_TD = gradient_TV.new_zeros(len(gradient_TV), weight_VD.shape[1], dtype=torch.float64)
    for gradient_TS, weight_SD in slices:
        hidden_gradient_TD += gradient_TS @ weight_SD
    return hidden_gradient_TD


def _weight_share(hidden_TD: Tensor, gradient_TV: Tensor, signs_PD: Tensor | None) -> Tensor:
    """The weight's share of ``‖∇‖²`` for one sequence, a float64 scalar; an estimate if there are probes."""
    if signs_PD is not None:
        return estimated_share(hidden_TD, gradient_TV, signs_PD)
    if hidden_TD.is_cuda:
        return weight_norms(hidden_TD, gradient_TV, [slice(0, len(hidden_TD))])[0]
    return weight_share(hidden_TD, gradient_TV)


def _bias_share(gradient_TV: Tensor) -> Tensor:
    """The bias's share of ``‖∇‖²`` for one sequence, a float64 scalar."""
    return squared_norm(gradient_TV.float().sum(0))


class _Shares:
    """Collects each sequence's share, and where the embedding's rule looks for them (KᵀH)_u of its distinct ids u."""

    def __init__(self, head: Head, measurement: NormContext) -> None:
        self._head = head
        self._signs_PD = measurement.signs_of(head.weight_VD, head.weight_VD, times=_PROBES_TIMES)
        self._ids: list[Tensor] | None = None
        if measurement.tied_weight_VD is not None:
            distinct = DistinctIds(measurement.batch.input_ids_1N[0], measurement.batch)
            self._ids = list(distinct.id_U.split(distinct.sequence_U.bincount().tolist()))
        self._weight_shares: list[Tensor] = []
        self._bias_shares: list[Tensor] = []
        self._num_complete = 0
        self._tied_rows: list[Tensor] = []
        self._long: LongSequence | None = None

    def add(self, piece: _Piece, hidden_RD: Tensor, gradient_RV: Tensor) -> None:
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
        if self._head.measures_weight:
            self._weight_shares.append(_weight_share(hidden_RD, gradient_RV, self._signs_PD))
        if self._head.measures_bias:
            self._bias_shares.append(_bias_share(gradient_RV))
        self._num_complete += 1

    def _long_sequence(self) -> LongSequence:
        head = self._head
        return LongSequence(head.weight_VD, measures_weight=head.measures_weight, measures_bias=head.measures_bias)

    def _finish_long(self, sequence: LongSequence) -> None:
        if self._ids is not None:
            self._tied_rows.append(sequence.tied_rows(self._ids[self._num_complete]))
        if self._head.measures_weight:
            self._weight_shares.append(sequence.weight_share())
        if self._head.measures_bias:
            self._bias_shares.append(sequence.bias_share())
        self._num_complete += 1

    def weight_B(self) -> Tensor | None:
        """Return the weight's share of each sequence, in order; None if it is not measured."""
        return torch.stack(self._weight_shares) if self._weight_shares else None

    def bias_B(self) -> Tensor | None:
        """Return the bias's share of each sequence, in order; None if it is not measured."""
        return torch.stack(self._bias_shares) if self._bias_shares else None

    def tied_rows_UD(self) -> Tensor | None:
        """Return the rows of all sequences, in the order of ``DistinctIds``; None where no embedding asks."""
        return None if self._ids is None else torch.cat(self._tied_rows)
