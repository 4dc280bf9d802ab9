"""Where this process is among those of a run of torch.distributed, and a name of the run that all of them know."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one run, seen from one of them."""

    rank: int
    count: int
    run: str
    """A name that no other run has, not even the same one resumed: its groups are other groups."""


def torch_processes() -> Processes:
    """This process as torch.distributed knows it. All processes must call it; alone without a process group."""
    import torch.distributed

    run = secrets.token_hex(8)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Processes(0, 1, run)
    from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs] - it has none

    names = [run]
    # The device is named because torch would take the current one of the thread, and TRL awaits on another thread.
    device = cast("torch.device", PartialState().device)  # pyright: ignore[reportUnknownMemberType] - likewise
    torch.distributed.broadcast_object_list(cast("list[object]", names), src=0, device=device)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), names[0])
