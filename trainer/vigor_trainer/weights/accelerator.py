"""Types for the parts of Accelerate that are used here, since Accelerate has no types."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

FSDP, DEEPSPEED = "FSDP", "DEEPSPEED"
"""Values of Accelerate's `DistributedType`."""


class Accelerator(Protocol):
    """The part of an `accelerate.Accelerator` that is used here."""

    @property
    def distributed_type(self) -> Enum:
        """How the model is distributed over the processes; its value is `NO`, `MULTI_GPU`, `FSDP`, `DEEPSPEED`, …"""
        ...

    @property
    def is_main_process(self) -> bool: ...

    def get_state_dict(self, model: torch.nn.Module, /) -> Mapping[str, Any] | None:
        """Return the whole model's weights in the main process; None in DeepSpeed's other processes."""
        ...

    def wait_for_everyone(self) -> None: ...
