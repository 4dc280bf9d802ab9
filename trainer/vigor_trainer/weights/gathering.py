"""The whole model's weights, wherever Accelerate has put its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.weights.accelerator import DEEPSPEED, Accelerator

if TYPE_CHECKING:
    import torch

TORCH_COMPILE_PREFIX = "_orig_mod."

Item = TypeVar("Item")


def gathered_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a prepared model under the names of the model itself, complete in the main process.

    Sharded parameters are gathered one by one, and kept in the host's memory. All processes must call it.

    Raises:
        UnsupportedSettingError: DeepSpeed's ZeRO-3 is not set up to gather them; says how to.
    """
    try:
        weights = accelerator.get_state_dict(model)
    except ValueError as error:
        if accelerator.distributed_type.value != DEEPSPEED:
            raise
        raise UnsupportedSettingError(str(error)) from error
    return with_plain_names(cast("dict[str, torch.Tensor]", weights or {}))  # None in ZeRO-3's other processes


def with_plain_names(items: Mapping[str, Item]) -> dict[str, Item]:
    """Return weights or modules under the names of their model, to which `torch.compile` adds a prefix."""
    return {name.replace(TORCH_COMPILE_PREFIX, ""): item for name, item in items.items()}
