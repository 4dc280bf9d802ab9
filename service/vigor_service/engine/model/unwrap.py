"""Typed access to the transformers model inside a wrapper, to its text config and to its modules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model  # pyright: ignore[reportReturnType] - PEFT's wrapper is untyped


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the text model; for a text-only model, the config itself."""
    return config.get_text_config()  # pyright: ignore[reportUnknownMemberType]


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return ``model.named_modules()``, with types."""
    return model.named_modules()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
