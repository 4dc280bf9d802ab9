"""Temporary choice of the implementation, among those registered with transformers, that a model runs under."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

Interface = Literal["attn", "experts"]


@contextmanager
def running_under(name: str, interface: Interface, module: nn.Module) -> Generator[None]:
    """Let the module and its submodels run under the implementation of this name, and restore each one's own."""
    field = f"_{interface}_implementation_internal"  # the public one is set for all submodels of a model at once
    submodels = (submodel for submodel in module.modules() if isinstance(submodel, PreTrainedModel))
    configs = {id(submodel.config): submodel.config for submodel in submodels}.values()
    before = [(config, getattr(config, field, None)) for config in configs]
    for config in configs:
        setattr(config, field, name)
    try:
        yield
    finally:
        for config, own_name in before:
            setattr(config, field, own_name)
