"""Gathers the whole model's weights, however Accelerate has distributed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vigor_client.publishing.tensor_names import with_plain_names
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.weights.accelerator import DEEPSPEED, Accelerator

if TYPE_CHECKING:
    import torch


def gathered_weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a prepared model under the names of the unwrapped model, complete in the main process.

    Sharded parameters are gathered one by one, and kept in the host's memory. All processes must call it.

    Raises:
        UnsupportedSettingError: DeepSpeed's ZeRO-3 is not configured to gather them; says how to configure it.
    """
    try:
        weights = accelerator.get_state_dict(model)
    except ValueError as error:
        if accelerator.distributed_type.value != DEEPSPEED:
            raise
        raise UnsupportedSettingError(str(error)) from error
    return with_plain_names(cast("dict[str, torch.Tensor]", weights or {}))  # None in ZeRO-3's other processes
