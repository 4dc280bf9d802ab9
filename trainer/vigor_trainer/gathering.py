"""The whole model's weights, wherever Accelerate has put its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

TORCH_COMPILE_PREFIX = "_orig_mod."


def gathered_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a prepared model under the names of the model itself, complete in the main process.

    Sharded parameters are gathered one by one, and wait in the host's memory. All processes must call it.
    """
    return with_plain_names(cast("dict[str, torch.Tensor]", accelerator.get_state_dict(model)))


def with_plain_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names of their model, which `torch.compile` puts a prefix to."""
    return {name.replace(TORCH_COMPILE_PREFIX, ""): tensor for name, tensor in weights.items()}
