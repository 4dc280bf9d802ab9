"""The output head with the loss: logits, gradient and norm, a few sequences at a time.

The gradient of a loss row at its logits is softmax - onehot, known as soon as the logits are. So the head needs no
graph, and the logits of a bounded number of rows exist at a time. With H (T, D) the head's input rows and K (T, V) the
logit gradients, the weight's gradient is KᵀH. A head that is tied to the embedding passes (KᵀH)_u for the ids u of the
sequence to the embedding's rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vigor_service.engine.ops import gemm
from vigor_service.engine.ops.typed_torch import apply, split, vector_norm
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.head_shares import HeadShares, Piece
from vigor_service.engine.rules.linear import gram_is_cheaper
from vigor_service.engine.rules.softmax import softmax_gradient, softmax_signals

_SLICE = 1024  # vocabulary entries
_LARGE = 2**-5  # entries of a row's gradient above it are added apart; softmax has at most 32 of them
_ROWS_IN_CACHE = 8
_ROWS_ON_GPU = 512  # that have a float32 copy at a time
# A matrix product of fewer rows with the vocabulary runs below the machine's rate.
_ROWS_AT_ONCE_CPU = 384
_ROWS_AT_ONCE_GPU = 2048


@dataclass(frozen=True, slots=True)
class Head:
    """The output head: ``logits = softcap tanh(scale (h @ weight.T + bias) / softcap)``."""

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
        """Return ``h @ weight.T + bias``, in the model's dtype."""
        return gemm.linear(hidden_TD, self.weight_VD, self.bias_V)

    def transform(self, raw_TV: Tensor) -> Tensor:
        """Return the raw logits, scaled and capped."""
        scaled_TV = raw_TV if self.scale == 1.0 else raw_TV * self.scale
        return scaled_TV if self.softcap is None else torch.tanh(scaled_TV / self.softcap) * self.softcap

    def raw_gradient_(self, logits_TV: Tensor, gradient_TV: Tensor) -> Tensor:
        """Turn, in place, the gradient at the logits into the gradient at the raw logits."""
        if self.softcap is not None:
            gradient_TV *= 1 - (logits_TV / self.softcap).square()
        return gradient_TV if self.scale == 1.0 else gradient_TV.mul_(self.scale)


def logit_transforms(config: PreTrainedConfig) -> list[tuple[float, float | None]]:
    """Return pairs (scale, softcap) that a model may apply to its logits, by the names that transformers' configs use.

    The first pair applies all that the config has. The last applies nothing, since a model of images and text may leave
    out what its text model applies.
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


def head_loss(hidden_MD: Tensor, head: Head, context: NormContext) -> tuple[Tensor, HeadSignals]:
    """Return the sum of the negative log-likelihoods of all loss rows, and the signals of each row.

    The sum equals ``F.cross_entropy(head.logits(hidden_MD), targets_M, reduction="sum")``; its backward pass adds the
    head's share to the leaves of the context.
    """
    total, nll_M, entropy_M, certainty_M = apply(
        _HeadLoss,
        hidden_MD,
        context.leaf_of(head.weight_VD) if head.measures_weight else None,
        context.leaf_of(head.bias_V) if head.bias_V is not None and head.measures_bias else None,
        head,
        context,
    )
    return total, HeadSignals(nll_M, entropy_M, certainty_M)


def head_signals(hidden_MD: Tensor, head: Head, targets_M: Tensor) -> HeadSignals:
    """Return the signals of ``head_loss``, without its gradient; logits of a bounded number of rows exist at a time."""
    size = _rows_at_once(hidden_MD.device)
    signals = [
        _signals_of(head, head.raw_logits(gemm.pad_rows(rows_RD))[: len(rows_RD)], targets_R)
        for rows_RD, targets_R in zip(split(hidden_MD, size), split(targets_M, size), strict=True)
    ]
    return HeadSignals(*torch.cat(signals, dim=1).unbind())


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden_MD: Tensor,
        weight_leaf_B: Tensor | None,  # noqa: ARG004 - the leaves' gradients are the result
        bias_leaf_B: Tensor | None,  # noqa: ARG004
        head: Head,
        context: NormContext,
    ) -> tuple[Tensor, ...]:
        hidden_gradient_MD = torch.empty_like(hidden_MD)
        signals_3M = hidden_MD.new_empty(3, len(hidden_MD), dtype=torch.float32)
        shares = HeadShares(
            head.weight_VD, context, measures_weight=head.measures_weight, measures_bias=head.measures_bias
        )
        for bundle in _bundles(context.batch.loss_slices, head, hidden_MD.device):
            rows = slice(bundle[0].rows.start, bundle[-1].rows.stop)
            num_rows = rows.stop - rows.start
            padded_PV = head.raw_logits(gemm.pad_rows(hidden_MD[rows]))  # padded here: the product below would copy
            gradient_RV = padded_PV[:num_rows]
            padded_PV[num_rows:] = 0
            signals_3M[:, rows] = _to_gradient_(head, gradient_RV, context.batch.targets_M[rows])
            hidden_gradient_MD[rows] = hidden_gradient(padded_PV, head.weight_VD)[:num_rows]
            for piece in bundle:
                own = slice(piece.rows.start - rows.start, piece.rows.stop - rows.start)
                shares.add(piece, hidden_MD[piece.rows], gradient_RV[own])
        context.tied_head_rows_UD = shares.tied_rows_UD()
        ctx.save_for_backward(hidden_gradient_MD, shares.weight_B(), shares.bias_B())
        ctx.mark_non_differentiable(*signals_3M.unbind())
        return signals_3M[0].sum(), *signals_3M.unbind()

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden_gradient_MD, weight_shares_B, bias_shares_B = ctx.saved_tensors
        hidden_gradient_MD = output_gradients[0].to(hidden_gradient_MD.dtype) * hidden_gradient_MD
        return hidden_gradient_MD, weight_shares_B, bias_shares_B, None, None


def _bundles(loss_slices: list[slice], head: Head, device: torch.device) -> list[list[Piece]]:
    """Split all loss rows, in order, into bundles: whole sequences together, or one chunk of a long sequence.

    A bundle has a bounded number of rows, or one sequence whose norm costs less from Gram matrices of all its rows.
    """
    most = _rows_at_once(device)
    bundles: list[list[Piece]] = []
    room = 0
    for rows in loss_slices:
        num_rows = rows.stop - rows.start
        if num_rows > most and not gram_is_cheaper(num_rows, *head.weight_VD.shape):
            bundles += [[piece] for piece in _chunks(rows, most)]
            room = 0
        elif num_rows > room:
            bundles.append([Piece(rows)])
            room = most - num_rows
        else:
            bundles[-1].append(Piece(rows))
            room -= num_rows
    return bundles


def _rows_at_once(device: torch.device) -> int:
    return _ROWS_AT_ONCE_CPU if device.type == "cpu" else _ROWS_AT_ONCE_GPU


def _chunks(rows: slice, size: int) -> list[Piece]:
    starts = range(rows.start, rows.stop, size)
    return [
        Piece(slice(start, min(start + size, rows.stop)), is_chunk=True, is_last=start == starts[-1])
        for start in starts
    ]


def _to_gradient_(head: Head, raw_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Overwrite raw logits by the summed loss's gradient at them; return NLL, entropy, self-certainty, shape (3, T).

    A CPU computes a few rows at a time, so that their intermediate results stay in its cache.
    """
    signals: list[Tensor] = []
    for raw_RV, logits_RV, targets_R in _few_at_a_time(head, raw_TV, targets_T):
        gradient_RV, signals_3R = softmax_gradient(logits_RV, targets_R)
        raw_RV.copy_(head.raw_gradient_(logits_RV, gradient_RV))
        signals.append(signals_3R)
    return torch.cat(signals, dim=1)


def _signals_of(head: Head, raw_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Return NLL, entropy, self-certainty of raw logits, shape (3, T), float64."""
    few = _few_at_a_time(head, raw_TV, targets_T)
    return torch.cat([softmax_signals(logits_RV, targets_R) for _, logits_RV, targets_R in few], dim=1)


def _few_at_a_time(head: Head, raw_TV: Tensor, targets_T: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield raw logits (R, V), the logits in float32 or wider, and targets (R,) of a few rows."""
    num_rows = _ROWS_ON_GPU if raw_TV.is_cuda else _ROWS_IN_CACHE
    dtype = torch.promote_types(raw_TV.dtype, torch.float32)
    for raw_RV, targets_R in zip(split(raw_TV, num_rows), split(targets_T, num_rows), strict=True):
        yield raw_RV, head.transform(raw_RV.to(dtype)), targets_R


def hidden_gradient(gradient_TV: Tensor, weight_VD: Tensor) -> Tensor:
    """Return ``gradient_TV @ weight_VD``; the gradient is unchanged afterwards.

    A CPU's libraries add the V products of a row one after the other. Next to an entry of about one, such as the
    target's, float32 drops many thousands of small ones. So large entries are added separately, in float64.
    """
    if gradient_TV.is_cuda:
        return gemm.linear(gradient_TV, weight_VD.T)
    rows_K, ids_K = _large_entries(gradient_TV)
    values_K = gradient_TV[rows_K, ids_K]
    gradient_TV[rows_K, ids_K] = 0
    hidden_gradient_TD = gemm.linear_of_long_sums(gradient_TV, weight_VD.T)
    gradient_TV[rows_K, ids_K] = values_K
    hidden_gradient_TD.index_add_(0, rows_K, values_K.double()[:, None] * weight_VD[ids_K])
    return hidden_gradient_TD.to(gradient_TV.dtype)


def _large_entries(gradient_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and id of each entry above ``_LARGE``; only slices whose norm (cheap) exceeds it are searched."""
    norms_ST = torch.stack([vector_norm(part, dim=-1) for part in split(gradient_TV, _SLICE, dim=1)])
    slices_J, rows_J = (norms_ST > _LARGE).nonzero(as_tuple=True)
    ids_JS = slices_J[:, None] * _SLICE + torch.arange(_SLICE, device=gradient_TV.device)
    rows_JS, num_ids = rows_J[:, None].expand_as(ids_JS), gradient_TV.shape[1]
    entries_JS = gradient_TV[rows_JS, ids_JS.clamp_max(num_ids - 1)]
    is_large_JS = (entries_JS.abs() > _LARGE) & (ids_JS < num_ids)
    return rows_JS[is_large_JS], ids_JS[is_large_JS]
