"""What autograd keeps of a forward pass until the backward pass: the more there is room for, the less runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class Activations(Enum):
    """From the fastest to the most frugal."""

    KEEP = "everything"
    REMATERIALIZE = "cheap results run again"  # rematerialization.py
    CHECKPOINT = "layers run again"  # activation_checkpointing.py


_SHARE_OF_FREE = 0.7
# Peaks above the weights, logits included, were 1.55 to 1.73 and 0.81 to 0.99 times the estimate (Qwen2.5, 0.5B to 7B).
_TIMES_ESTIMATE = {Activations.KEEP: 2.0, Activations.REMATERIALIZE: 1.0}


@dataclass(frozen=True, slots=True)
class Demand:
    """About how many bytes the batches that run at once keep, without logits.

    ``bytes_once``: where every layer runs once, by ``REMATERIALIZE``. ``saved_per_layer``: what is not kept of a layer
    that runs twice. ``num_layers``: how many can.
    """

    bytes_once: int
    saved_per_layer: int
    num_layers: int


def activations_run_once(device: torch.device) -> tuple[Activations, ...]:
    """Return the choices that run each layer once, the fastest first.

    A CPU never keeps everything: running cheap results again costs no more than fetching them from memory.
    """
    return (Activations.KEEP, Activations.REMATERIALIZE) if device.type == "cuda" else (Activations.REMATERIALIZE,)


def room_bytes(free_bytes: int | None, most_bytes: int | None) -> int | None:
    """Return a safe share of what is free, or ``most_bytes`` where that is less; None where neither is known."""
    rooms = [most_bytes, None if free_bytes is None else int(_SHARE_OF_FREE * free_bytes)]
    return min((room for room in rooms if room is not None), default=None)


def choose_activations(device: torch.device, demand: Demand, room_bytes: int | None) -> tuple[Activations, int]:
    """Return the fastest choice that fits into the room, and how many layers run twice: as few as possible.

    The fastest of all where the room is not known. Where even all layers twice do not fit, that is the answer. On a GPU
    all run twice or none: what would be left over goes to logits, whose size is not in the demand.
    """
    choices = activations_run_once(device)
    if room_bytes is None:
        return choices[0], 0
    for activations in choices:
        if demand.bytes_once * _TIMES_ESTIMATE[activations] <= room_bytes:
            return activations, 0
    if not demand.num_layers:
        return choices[-1], 0
    if device.type == "cuda":
        return Activations.CHECKPOINT, demand.num_layers
    num_twice = ceil((demand.bytes_once - room_bytes) / max(1, demand.saved_per_layer))
    return Activations.CHECKPOINT, min(num_twice, demand.num_layers)


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """About what a token's activations take: in all layers, run once by ``REMATERIALIZE``, and each layer's input."""

    per_token: int
    saved_per_token: int  # by a layer that runs twice, and keeps its input alone

    @classmethod
    def of(cls, model: PreTrainedModel, layers: Sequence[nn.Module]) -> LayerBytes:
        """Count for each matrix the larger of its sides: more than is kept, since layers share inputs."""
        experts_per_token = getattr(_text_config(model), "num_experts_per_tok", None) or 1
        matrices = [parameter for layer in layers for parameter in layer.parameters() if parameter.dim() > 1]
        per_token = sum(
            max(matrix.shape[-2:]) * matrix.element_size() * (experts_per_token if matrix.dim() > 2 else 1)
            for matrix in matrices
        )
        table_VD: torch.Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType] - PEFT's is none
        input_bytes = table_VD.shape[1] * model.dtype.itemsize
        return cls(per_token, max(0, per_token // max(1, len(layers)) - input_bytes))

    def demand(self, num_tokens: int, *, num_prompt_tokens: int, num_layers: int) -> Demand:
        """Return what batches of ``num_tokens`` keep beside prompts whose rows are there in any case."""
        return Demand((num_tokens + num_prompt_tokens) * self.per_token, num_tokens * self.saved_per_token, num_layers)


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config()  # pyright: ignore[reportUnknownMemberType]
