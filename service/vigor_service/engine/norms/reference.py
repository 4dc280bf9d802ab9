"""The obviously correct reference: one forward and one backward pass per sequence.

Uses the model as it is, computes every gradient, and sums squares in float64. Slow on purpose: this is the
yardstick of the fast path, and its fallback for models that the fast path does not understand.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from math import log, nan, sqrt

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]
from transformers import PreTrainedModel

from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import gradients_of, split, to_list
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence

ELEMENTS_AT_ONCE = 2**24
_FEW_ROWS = 16  # with a large vocabulary, a CPU's backward product is off by 1e-5 for fewer rows, by 3e-6 for more


def exact_score(
    model: PreTrainedModel, sequence: TokenSequence, parameters: Mapping[str, nn.Parameter]
) -> SequenceScore:
    """Score one sequence with ``torch.autograd.grad``.

    ``grad_norm = sqrt(sum((g.double() ** 2).sum() for g in grad(nll, parameters)))`` over the loss tokens, where
    ``nll = F.cross_entropy(logits.double(), targets)``, with teacher forcing, no temperature and dropout off
    (arXiv 2605.09920, equation 4).
    """
    with requiring_grad(model, parameters.values()):
        return score_requiring_grad(model, sequence, parameters)


def score_requiring_grad(
    model: PreTrainedModel, sequence: TokenSequence, parameters: Mapping[str, nn.Parameter]
) -> SequenceScore:
    """Return what ``exact_score`` returns, within ``requiring_grad``; several threads may call it at once."""
    if sequence.num_loss_tokens == 0:
        return EMPTY_SCORE
    logits_TV = loss_logits(model, sequence)
    nll_T = token_nll(logits_TV, sequence)
    gradients = gradients_of(nll_T.mean(), list(parameters.values()))
    total = sum(squared_norm(gradient).item() for gradient in gradients if gradient is not None)
    return _score(sqrt(total), nll_T.detach(), logits_TV.detach())


@torch.no_grad()
def exact_signals(model: PreTrainedModel, sequence: TokenSequence) -> SequenceScore:
    """Return the result of ``exact_score`` with NaN as its norm, by a forward pass alone; the model is in eval mode."""
    if sequence.num_loss_tokens == 0:
        return EMPTY_SCORE
    logits_TV = loss_logits(model, sequence)
    return _score(nan, token_nll(logits_TV, sequence), logits_TV)


def token_nll(logits_TV: Tensor, sequence: TokenSequence) -> Tensor:
    """Return ``F.cross_entropy(logits_TV.double(), targets_T, reduction="none")`` of the loss tokens, shape (T,).

    Only some rows have a float64 copy in memory at once. In float32, the error of the sum over a large vocabulary
    exceeds the error of the rest of the model.
    """
    targets_T = torch.tensor(sequence.loss_targets(), device=logits_TV.device)
    num_rows = _rows_at_once(logits_TV)
    if num_rows >= len(logits_TV):
        return _nll(logits_TV, targets_T)
    nll_T: list[Tensor] = [
        checkpoint(_nll, rows, targets, use_reentrant=False, preserve_rng_state=False)
        for rows, targets in zip(split(logits_TV, num_rows), split(targets_T, num_rows), strict=True)
    ]
    return torch.cat(nll_T)


def _nll(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_RV.double(), targets_R, reduction="none")


def _rows_at_once(logits_TV: Tensor) -> int:
    return max(1, ELEMENTS_AT_ONCE // logits_TV.shape[1])


def loss_logits(model: PreTrainedModel, sequence: TokenSequence, *, runs_all_positions: bool = False) -> Tensor:
    """Return the logits (T, V) of the loss positions, in the dtype in which the model returns them.

    The head runs only at these positions if the model can do so, unless ``runs_all_positions``.
    """
    input_ids = torch.tensor([sequence.token_ids], device=model.device)
    positions_T = torch.tensor(sequence.loss_positions(), device=model.device)
    if runs_all_positions or len(positions_T) < _FEW_ROWS or not _takes_positions(model):
        return model(input_ids=input_ids, use_cache=False).logits[0, positions_T]
    logits_TV = model(input_ids=input_ids, logits_to_keep=positions_T, use_cache=False).logits[0]
    return logits_TV if len(logits_TV) == len(positions_T) else logits_TV[positions_T]  # some ignore the argument


def _takes_positions(model: PreTrainedModel) -> bool:
    inner: nn.Module = getattr(model, "get_base_model", lambda: model)()  # PEFT's passes all arguments on
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _score(grad_norm: float, nll_T: Tensor, logits_TV: Tensor) -> SequenceScore:
    entropy, self_certainty = _signals(logits_TV)
    return SequenceScore(
        num_loss_tokens=len(nll_T),
        grad_norm=grad_norm,
        mean_logprob=-nll_T.mean().item(),
        mean_entropy=entropy,
        self_certainty=self_certainty,
        mean_probability=nll_T.neg().exp().mean().item(),
        token_logprobs=to_list(-nll_T),
    )


def _signals(logits_TV: Tensor) -> tuple[float, float]:
    """Return mean entropy and self-certainty (mean over tokens and vocabulary of -log(V p)), in nats.

    A token of probability 0 adds nothing to the entropy, and makes the self-certainty infinite.
    """
    entropy, mean_logprob = 0.0, 0.0
    for logits_RV in split(logits_TV, _rows_at_once(logits_TV)):
        logprobs_RV = logits_RV.double().log_softmax(-1)
        mean_logprob += logprobs_RV.mean(-1).sum().item()
        finite_RV = logprobs_RV.clamp_min(torch.finfo(torch.float64).min)
        entropy -= logprobs_RV.exp_().mul_(finite_RV).sum().item()
    return entropy / len(logits_TV), -mean_logprob / len(logits_TV) - log(logits_TV.shape[1])


@contextmanager
def requiring_grad(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Let exactly these parameters require gradients, in eval mode, and restore both afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    model.requires_grad_(False).eval()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
        model.train(was_training)
