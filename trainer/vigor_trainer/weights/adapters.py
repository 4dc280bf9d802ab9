"""Finds the publisher of a model with an adapter; only a process that has the whole model can publish it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vigor_client.publishing.adapted_model import AdaptedModel, adapted_model
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.weights.accelerator import DEEPSPEED, FSDP, Accelerator

if TYPE_CHECKING:
    import torch


def whole_adapted_model(accelerator: Accelerator, model: torch.nn.Module) -> AdaptedModel | None:
    """Return the publisher of a model with an adapter; None for a model without one.

    Raises:
        UnsupportedAdapterError: the model has anything but a single LoRA adapter.
        UnsupportedSettingError: the model is sharded.
    """
    adapted = adapted_model(model)
    if adapted is not None and accelerator.distributed_type.value in (FSDP, DEEPSPEED):
        raise UnsupportedSettingError(
            f"--use_peft with {accelerator.distributed_type.value}: publishing an adapter needs the whole model in "
            "one process; launch without sharding"
        )
    return adapted
