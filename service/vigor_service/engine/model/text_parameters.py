"""Finds the parameters of a multimodal model that a pass over text does not reach: a vision tower's, a projector's.
Their gradient is zero, so measuring them would cost memory and time and change no norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.model.unwrap import text_config
from vigor_service.engine.ops.typed_torch import gradients_of

_NUM_TOKENS = 2


def unreached_by_text(model: PreTrainedModel) -> set[nn.Parameter]:
    """Return the parameters outside the text decoder, its embeddings and its head that text does not reach.

    The set is empty for a text-only model. One pass over text finds which of the outside parameters text does reach.
    """
    outside = [parameter for _, parameter in named_outside_text(model)]
    return set(outside) - _reached(model, [parameter for parameter in outside if parameter.is_floating_point()])


def named_outside_text(model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """Return the named parameters outside the text decoder, its embeddings and its head; none if all input is text."""
    if text_config(model.config) is model.config:
        return []
    inside: list[nn.Module | None] = [
        model.get_decoder(),
        model.get_input_embeddings(),
        model.get_output_embeddings(),
    ]
    kept = {parameter for module in inside if module is not None for parameter in module.parameters()}
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter not in kept]


def media_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the ids of the placeholder tokens that the model replaces by an image, a video or a sound."""
    config = model.config
    if text_config(config) is config:
        return frozenset()
    fields = (f"{medium}_token_{kind}" for medium in ("image", "video", "audio") for kind in ("id", "index"))
    return frozenset(value for field in fields if isinstance(value := getattr(config, field, None), int))


def text_pass(model: PreTrainedModel) -> Tensor:
    """Return the logits (1, 2, V) of two tokens."""
    input_ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=model.device)
    return model(input_ids=input_ids, use_cache=False).logits


def _reached(model: PreTrainedModel, parameters: list[nn.Parameter]) -> set[nn.Parameter]:
    """Return the given parameters that a text's logits depend on; only their gradients are computed."""
    if not parameters:
        return set()
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = text_pass(model)
            if not logits.requires_grad:
                return set()
            gradients = gradients_of(logits.sum(), parameters)
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
    return {parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
