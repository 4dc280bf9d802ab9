"""What autograd keeps of a forward pass until the backward pass: the more there is room for, the less runs again."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import torch
from torch import nn
from transformers import PreTrainedModel


class Keep(Enum):
    """From the fastest to the most frugal."""

    EVERYTHING = "everything"
    LITTLE = "cheap results run again"  # engine/rematerialization.py
    LAYER_INPUTS = "layers run again"  # engine/checkpoints.py


_SHARE_OF_FREE = 0.7
# Peaks above the weights, logits included, were 1.55 to 1.73 and 0.81 to 0.99 times the estimate (Qwen2.5, 0.5B to 7B).
_TIMES_ESTIMATE = {Keep.EVERYTHING: 2.0, Keep.LITTLE: 1.0}


def ways_to_keep(device: torch.device) -> tuple[Keep, ...]:
    """Return the ways that run each layer once, the fastest first.

    On a CPU little is always kept: running cheap results again costs no more than fetching them from memory.
    """
    return (Keep.EVERYTHING, Keep.LITTLE) if device.type == "cuda" else (Keep.LITTLE,)


def choose_keep(
    device: torch.device, *, num_tokens: int, bytes_per_token: int, free_bytes: int | None, can_checkpoint: bool
) -> Keep:
    """Return the fastest way whose bytes are a safe share of what is free; the fastest where that is not known."""
    ways = ways_to_keep(device)
    if free_bytes is None:
        return ways[0]
    room = _SHARE_OF_FREE * free_bytes
    fitting = [keep for keep in ways if num_tokens * bytes_per_token * _TIMES_ESTIMATE[keep] <= room]
    return fitting[0] if fitting else Keep.LAYER_INPUTS if can_checkpoint else ways[-1]


def bytes_kept_per_token(model: PreTrainedModel, layers: Iterable[nn.Module]) -> int:
    """Return about how much ``Keep.LITTLE`` keeps of a token in these layers: for each matrix the larger of its sides.

    That is more than is kept: rules keep the inputs of matrices, and layers share some.
    """
    experts_per_token = getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1
    matrices = [parameter for layer in layers for parameter in layer.parameters() if parameter.dim() > 1]
    return sum(
        max(matrix.shape[-2:]) * matrix.element_size() * (experts_per_token if matrix.dim() > 2 else 1)
        for matrix in matrices
    )
