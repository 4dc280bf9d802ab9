"""The loss at logits: its gradient, and signals of the predicted distribution.

A row of ``softmax - onehot`` sums to zero. If it does not, the remainder is multiplied by the direction that all rows
of the head's weight have in common. torch's float32 log-softmax adds the exponentials of a vocabulary one after the
other in a few lanes. With 262,144 entries the sum is off by up to 1e-4, and next to one likely token the others are
lost. Here exponentials are float32, and sums float64 over slices: docs/decisions/0048-sums-over-the-vocabulary.md.

Shapes: R rows, V vocabulary entries.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from vigor_service.engine.ops.typed_torch import unflatten

_SLICE = 1024  # vocabulary entries whose sum is float32
_LOWEST = -1e3  # its exponential is 0 in every dtype; unlike -inf its product with 0 is a number


def softmax_gradient(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (R, V) of ``F.cross_entropy(logits_RV, targets_R, reduction="sum")``, and signals (3, R).

    The signals are negative log-likelihood, entropy, and self-certainty (the mean over the vocabulary of -log(V p)),
    in nats. A token whose logit is -inf adds nothing to the entropy and makes the self-certainty infinite. The target's
    entry is minus the sum of all others, which is also accurate where ``p - 1`` would be mostly rounding error.
    """
    weights_RV, others_R, total_R, signals_3R = _softmax(logits_RV, targets_R)
    unit_R = (1 / total_R).to(weights_RV.dtype)
    target_gradient_R = (-others_R * unit_R).to(weights_RV.dtype)
    gradient_RV = weights_RV.mul_(unit_R[:, None]).scatter_(1, targets_R[:, None], target_gradient_R[:, None])
    return gradient_RV, signals_3R


def softmax_signals(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Return the signals (3, R) of ``softmax_gradient``, without the gradient."""
    return _softmax(logits_RV, targets_R)[-1]


def _softmax(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the exponentials (R, V) with 0 for the target, their sum, the sum with the target's, and the signals."""
    targets_R1 = targets_R[:, None]
    shifted_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
    target_logit_R = shifted_RV.gather(1, targets_R1).squeeze(1).double()
    mean_R = _sum(shifted_RV) / shifted_RV.shape[1]
    weights_RV = shifted_RV.exp()
    target_weight_R = weights_RV.gather(1, targets_R1).squeeze(1).double()
    weighted_logits_R = _sum(shifted_RV.clamp_min_(_LOWEST).mul_(weights_RV))
    others_R = _sum(weights_RV.scatter_(1, targets_R1, 0))
    total_R = others_R + target_weight_R
    log_total_R = total_R.log()
    self_certainty_R = log_total_R - mean_R - log(shifted_RV.shape[1])
    signals_3R = torch.stack(
        [log_total_R - target_logit_R, log_total_R - weighted_logits_R / total_R, self_certainty_R]
    )
    return weights_RV, others_R, total_R, signals_3R


def _sum(rows_RV: Tensor) -> Tensor:
    """Sum each row, in float64 across slices."""
    sliced = rows_RV.shape[1] - rows_RV.shape[1] % _SLICE
    slices_RS = unflatten(rows_RV[:, :sliced], 1, (-1, _SLICE)).sum(-1)
    return slices_RS.sum(-1, dtype=torch.float64) + rows_RV[:, sliced:].sum(-1, dtype=torch.float64)
