"""Which adapters can be published: those of a process that has all of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vigor_client.publishing.adapted_model import AdaptedModel, adapted_model
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.weights.accelerator import DEEPSPEED, FSDP, Accelerator

if TYPE_CHECKING:
    import torch


def whole_adapted_model(accelerator: Accelerator, model: torch.nn.Module) -> AdaptedModel | None:
    """Return the publishing side of a model with an adapter; None for one without.

    Raises:
        UnsupportedAdapterError: its adapters are not one of type LoRA.
        UnsupportedSettingError: the model is sharded.
    """
    adapted = adapted_model(model)
    if adapted is not None and accelerator.distributed_type.value in (FSDP, DEEPSPEED):
        raise UnsupportedSettingError(
            f"--use_peft with {accelerator.distributed_type.value}: publishing an adapter needs the whole model in "
            "one process; launch without sharding"
        )
    return adapted
