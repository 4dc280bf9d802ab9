"""The transformers model inside whatever wraps it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model  # pyright: ignore[reportReturnType] - PEFT's wrapper is untyped
