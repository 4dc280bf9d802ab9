"""The processes of one torch.distributed run: this process' rank, and calls that one process makes for all."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from vigor_client.integrations.trl.errors import MainProcessError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one run, seen from one of them."""

    rank: int
    count: int
    run: str
    """A name unique to this run. A resumed run has another, so that its groups are not taken for earlier ones."""


def torch_processes() -> Processes:
    """Return the processes of torch.distributed, or one process without a process group. All processes must call it."""
    return Processes(process_rank(), _num_processes(), on_main_process(lambda: secrets.token_hex(8)))


def process_rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    import torch.distributed

    return torch.distributed.get_rank() if _has_process_group() else 0


def on_main_process(work: Callable[[], Result]) -> Result:
    """Return `work()` of the main process, in every process. All processes must call it.

    Raises:
        MainProcessError: in the other processes, if the main process raised, so that none of them waits forever in a
            collective operation.
        whatever ``work`` raises, in the main process.
    """
    if not _has_process_group():
        return work()
    outcome: list[tuple[Result] | None] = [None]
    try:
        if process_rank() == 0:
            outcome[0] = (work(),)
    finally:
        _broadcast(cast("list[object]", outcome))
    if outcome[0] is None:
        raise MainProcessError(f"process {process_rank()} stops: the main process failed, see its message")
    return outcome[0][0]


def gather_from_all(items: list[Result]) -> list[Result]:
    """Return the items of all processes, in the order of their ranks. All processes must call it."""
    from accelerate.utils import gather_object  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return cast("list[Result]", gather_object(items))


def _has_process_group() -> bool:
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _num_processes() -> int:
    import torch.distributed

    return torch.distributed.get_world_size() if _has_process_group() else 1


def _broadcast(objects: list[object]) -> None:
    import torch.distributed
    from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs] - it has none

    # The device is named because torch would take the current one of the thread, and TRL awaits on another thread.
    device = cast("torch.device", PartialState().device)  # pyright: ignore[reportUnknownMemberType] - likewise
    torch.distributed.broadcast_object_list(objects, src=0, device=device)
