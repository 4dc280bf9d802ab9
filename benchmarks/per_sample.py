"""Per-sample norms by two libraries, torch.func and Opacus. Both take the group as a padded batch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import PreTrainedModel

from vigor_service.engine.sequences import TokenSequence

_IGNORED = -100


def vmap_norms(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return gradient norms by ``vmap(grad(loss))``: every sample's whole gradient at the same time."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], ids_L: Tensor, targets_L: Tensor) -> Tensor:
        call = {"input_ids": ids_L[None], "use_cache": False}
        return _mean_nll_B(functional_call(model, parameters, (), call).logits, targets_L[None])[0]

    def norm(ids_L: Tensor, targets_L: Tensor) -> Tensor:
        gradients = grad(loss)(parameters, ids_L, targets_L)
        return torch.stack([gradient.float().square().sum() for gradient in gradients.values()]).sum().sqrt()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # attention runs sample by sample
        return vmap(norm)(*_right_padded(sequences, model.device)).tolist()


def opacus_norms(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return gradient norms from the first backward pass of Opacus's ghost clipping.

    Raises:
        ModuleNotFoundError: Opacus is not installed.
        NotImplementedError: Opacus does not support the model, for example tied weights.
    """
    wrapper = importlib.import_module("opacus.grad_sample").GradSampleModuleFastGradientClipping
    ids_BL, targets_BL = _right_padded(sequences, model.device)
    model.train()  # Opacus' hooks work only in training mode; the measured models have no dropout
    wrapped = wrapper(model, loss_reduction="sum")
    try:
        logits_BLV = wrapped(input_ids=ids_BL, use_cache=False).logits
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")  # of the embedding: ids have none
            _mean_nll_B(logits_BLV, targets_BL).sum().backward()
        return wrapped.get_norm_sample().tolist()
    finally:
        wrapped.to_standard_module()
        model.zero_grad(set_to_none=True)
        model.eval()


def _mean_nll_B(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    nll_BL = nn.functional.cross_entropy(
        logits_BLV.float().transpose(1, 2), targets_BL, reduction="none", ignore_index=_IGNORED
    )
    return nll_BL.sum(1) / targets_BL.ne(_IGNORED).sum(1)


def _right_padded(sequences: Sequence[TokenSequence], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and targets, each (B, L). Padding is last, so in a causal model no counted position attends to it."""
    longest = max(sequence.num_tokens for sequence in sequences)
    ids_BL = torch.zeros(len(sequences), longest, dtype=torch.long)
    targets_BL = torch.full_like(ids_BL, _IGNORED)
    for ids_L, targets_L, sequence in zip(ids_BL, targets_BL, sequences, strict=True):
        ids_L[: sequence.num_tokens] = torch.tensor(sequence.token_ids)
        targets_L[sequence.loss_positions()] = torch.tensor(sequence.loss_targets())
    return ids_BL.to(device), targets_BL.to(device)
