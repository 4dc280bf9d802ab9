"""Names of the parts of a model that parameters belong to: embedding, layer 3, model.norm, head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vigor_service.engine.model.decoder import decoder_layers
from vigor_service.engine.model.unwrap import causal_model


def module_labels(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return for each parameter its decoder layer (``layer 0``), ``embedding``, ``head``, or else its module's path.

    A weight that serves as both has the label ``embedding and head``.
    """
    causal = causal_model(model)
    words: dict[int, str] = {}
    for index, layer in enumerate(decoder_layers(causal) or ()):
        words |= {id(parameter): f"layer {index}" for parameter in layer.parameters()}
    embedding, head = _ids(causal.get_input_embeddings()), _ids(causal.get_output_embeddings())
    words |= dict.fromkeys(embedding, "embedding") | dict.fromkeys(head, "head")
    words |= dict.fromkeys(embedding & head, "embedding and head")
    return {name: words.get(id(model.get_parameter(name)), name.rpartition(".")[0]) for name in names}


def _ids(module: Any) -> set[int]:  # noqa: ANN401 - PEFT's wrapper is untyped
    return {id(parameter) for parameter in module.parameters()}
