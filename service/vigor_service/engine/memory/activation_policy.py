"""What autograd keeps of a forward pass until the backward pass: the more memory is free, the less is recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class Activations(Enum):
    """What autograd keeps of a forward pass, from the fastest choice to the one with the least memory."""

    KEEP = "everything"
    REMATERIALIZE = "cheap results run again"  # rematerialization.py
    CHECKPOINT = "layers run again"  # activation_checkpointing.py


_SHARE_OF_FREE = 0.7
# Peaks above the weights, logits included, were 1.55 to 1.73 and 0.81 to 0.99 times the estimate (Qwen2.5, 0.5B to 7B).
_TIMES_ESTIMATE = {Activations.KEEP: 2.0, Activations.REMATERIALIZE: 1.0}


@dataclass(frozen=True, slots=True)
class Demand:
    """Estimated bytes that the batches that run at once keep, without logits.

    ``bytes_once``: bytes kept if every layer runs once, by ``REMATERIALIZE``. ``saved_per_layer``: bytes saved by each
    layer that runs twice. ``num_layers``: number of layers that can run twice.
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
    """Return the smaller of ``most_bytes`` and a safe share of ``free_bytes``; None if neither is known."""
    rooms = [most_bytes, None if free_bytes is None else int(_SHARE_OF_FREE * free_bytes)]
    return min((room for room in rooms if room is not None), default=None)


def choose_activations(device: torch.device, demand: Demand, room_bytes: int | None) -> tuple[Activations, int]:
    """Return the fastest choice that fits into ``room_bytes``, and how many layers run twice: as few as possible.

    If ``room_bytes`` is None, it is the fastest choice of all. If the demand does not fit even with all layers run
    twice, it is that choice. On a GPU either all layers run twice or none: memory saved beyond the need is left to
    logits, whose size is not in the demand.
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
    """Estimated bytes of a token's activations.

    ``per_token``: in all layers, each run once by ``REMATERIALIZE``. ``saved_per_token``: what a layer that runs twice
    saves.
    """

    per_token: int
    saved_per_token: int  # by a layer that runs twice and keeps only its input

    @classmethod
    def of(cls, model: PreTrainedModel, layers: Sequence[nn.Module]) -> LayerBytes:
        """Return an estimate by the larger side of each matrix: more than is kept, since layers share inputs."""
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
        """Return the demand of batches of ``num_tokens`` in addition to shared prompts, whose rows are always kept."""
        return Demand((num_tokens + num_prompt_tokens) * self.per_token, num_tokens * self.saved_per_token, num_layers)


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config()  # pyright: ignore[reportUnknownMemberType]
