"""The output head with the loss: logits, gradient and norm, one sequence at a time.

The gradient of a loss row at its logits is softmax - onehot, known as soon as the logits are; so the head needs no
graph, and no more than one sequence's logits (T, V) exist at a time. With H (T, D) the head's input rows and K (T, V)
the logit gradients, the weight's gradient is KᵀH; a head tied to the embedding leaves (KᵀH)_u for the ids u of the
sequence to the embedding's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from vigor_service.engine.measurement import Measurement, matmul_float32
from vigor_service.engine.rules.embedding import DistinctIds
from vigor_service.engine.rules.linear import gram_is_cheaper, inner_product_, squared_norm, weight_gradient

_SLICE = 1024  # vocabulary entries


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
        logits_TV = F.linear(hidden_TD, self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits_TV = logits_TV * self.scale
        if self.softcap is not None:
            logits_TV = torch.tanh(logits_TV / self.softcap) * self.softcap
        return logits_TV.float()

    def raw_gradient_(self, logits_TV: Tensor, gradient_TV: Tensor) -> Tensor:
        """Turn, in place, the gradient at the logits into the gradient at ``h @ weight.T + bias``."""
        if self.softcap is not None:
            gradient_TV *= 1 - (logits_TV / self.softcap).square()
        return gradient_TV if self.scale == 1.0 else gradient_TV.mul_(self.scale)


def logit_transform(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Return (scale, softcap) of a model's logits, by the names that transformers' configs use."""
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    return scale / divisor, getattr(config, "final_logit_softcapping", None)  # Gemma


@dataclass(frozen=True, slots=True)
class HeadSignals:
    """Per loss row: negative log-likelihood, entropy, self-certainty. Each of shape (M,)."""

    nll_M: Tensor
    entropy_M: Tensor
    self_certainty_M: Tensor


def head_loss(hidden_MD: Tensor, head: Head, measurement: Measurement) -> tuple[Tensor, HeadSignals]:
    """Return the sum of the negative log-likelihoods of all loss rows, and the signals of each row.

    The sum equals ``F.cross_entropy(head.logits(hidden_MD), targets_M, reduction="sum")``; its backward pass adds the
    head's share to the measurement.
    """
    total, nll_M, entropy_M, certainty_M = _HeadLoss.apply(hidden_MD, measurement.squared_norms_B, head, measurement)  # pyright: ignore[reportGeneralTypeIssues] - apply is untyped
    return total, HeadSignals(nll_M, entropy_M, certainty_M)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden_MD: Tensor,
        squared_norms_B: Tensor,
        head: Head,
        measurement: Measurement,
    ) -> tuple[Tensor, ...]:
        shares_B = torch.zeros_like(squared_norms_B)
        hidden_gradient_MD = torch.empty_like(hidden_MD)
        signals = [hidden_MD.new_empty(len(hidden_MD), dtype=torch.float32) for _ in range(3)]
        tied = _TiedRows(measurement) if measurement.tied_weight_VD is not None else None
        for sequence, rows in enumerate(measurement.batch.loss_slices):
            hidden_TD = hidden_MD[rows]
            gradient_TV, *row_signals = _loss_rows(head, hidden_TD, measurement.batch.targets_M[rows])
            for signal, values in zip(signals, row_signals, strict=True):
                signal[rows] = values
            gradient_TV = gradient_TV.to(hidden_MD.dtype)
            hidden_gradient_MD[rows] = hidden_gradient(gradient_TV, head.weight_VD)
            shares_B[sequence] = _share(head, hidden_TD, gradient_TV)
            if tied is not None:
                tied.add(sequence, hidden_TD, gradient_TV)
        ctx.save_for_backward(hidden_gradient_MD, shares_B)
        ctx.mark_non_differentiable(*signals)
        return signals[0].sum(), *signals

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        hidden_gradient_MD, shares_B = ctx.saved_tensors
        return output_gradients[0].to(hidden_gradient_MD.dtype) * hidden_gradient_MD, shares_B, None, None


def _loss_rows(head: Head, hidden_TD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradient (T, V) at ``h @ weight.T + bias`` of the summed loss, then NLL, entropy, self-certainty."""
    logits_TV = head.logits(hidden_TD)
    logprobs_TV = logits_TV.log_softmax(-1)
    probs_TV = logprobs_TV.exp()
    nll_T = F.nll_loss(logprobs_TV, targets_T, reduction="none")
    self_certainty_T = -logprobs_TV.mean(-1) - log(logprobs_TV.shape[-1])
    entropy_T = -(logprobs_TV.mul_(probs_TV)).sum(-1)
    gradient_TV = probs_TV
    gradient_TV[torch.arange(len(targets_T), device=targets_T.device), targets_T] -= 1
    return head.raw_gradient_(logits_TV, gradient_TV), nll_T, entropy_T, self_certainty_T


def hidden_gradient(gradient_TV: Tensor, weight_VD: Tensor) -> Tensor:
    """``gradient_TV @ weight_VD``, on a CPU in slices of the vocabulary.

    A CPU's kernel adds a leftover row's V products up one after the other: an error of 2e-4 at V = 49,152 in float32,
    where slices have 3e-6 and take no longer.
    """
    if gradient_TV.is_cuda:
        return gradient_TV @ weight_VD
    slices = zip(gradient_TV.split(_SLICE, dim=1), weight_VD.split(_SLICE), strict=True)
    hidden_gradient_TD = gradient_TV.new_zeros(len(gradient_TV), weight_VD.shape[1], dtype=torch.float32)
    for gradient_TS, weight_SD in slices:
        hidden_gradient_TD += gradient_TS @ weight_SD
    return hidden_gradient_TD.to(gradient_TV.dtype)


def _share(head: Head, hidden_TD: Tensor, gradient_TV: Tensor) -> Tensor:
    """The head's share of ``‖∇‖²`` for one sequence, a float64 scalar."""
    share = torch.zeros((), dtype=torch.float64, device=hidden_TD.device)
    if head.measures_weight and gram_is_cheaper(len(hidden_TD), hidden_TD.shape[1], gradient_TV.shape[1]):
        gram_TT = matmul_float32(gradient_TV, gradient_TV.T)
        share = share + inner_product_(gram_TT, matmul_float32(hidden_TD, hidden_TD.T))
    elif head.measures_weight:
        share = share + squared_norm(weight_gradient(hidden_TD, gradient_TV))
    if head.measures_bias:
        share = share + squared_norm(gradient_TV.float().sum(0))
    return share


class _TiedRows:
    """Collects (KᵀH)_u for the distinct ids u of every sequence, where the embedding's rule looks for them."""

    def __init__(self, measurement: Measurement) -> None:
        distinct = DistinctIds(measurement.batch.input_ids_1N[0], measurement.batch)
        self._ids = distinct.id_U.split(distinct.sequence_U.bincount().tolist())
        self._rows: list[Tensor] = []
        self._measurement = measurement

    def add(self, sequence: int, hidden_TD: Tensor, gradient_TV: Tensor) -> None:
        self._rows.append(matmul_float32(gradient_TV[:, self._ids[sequence]].T, hidden_TD))
        self._measurement.tied_head_rows_UD = torch.cat(self._rows)
