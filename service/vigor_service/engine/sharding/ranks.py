"""The processes (ranks) that form one engine: how they connect, and how they exchange values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process, number ``rank`` of the ``size`` processes that form one engine."""

    rank: int
    size: int
    mesh: DeviceMesh

    def exchange(self, value: T) -> list[T]:
        """Return, on every rank, the values of all ranks in the order of the ranks."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)  # pyright: ignore[reportUnknownMemberType]
        return cast("list[T]", values)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of the values over all ranks."""
        total = values.to(self.mesh.device_type, copy=True)
        dist.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]
        return total


def join_ranks(rank: int, size: int, *, address: str, device: torch.device, timeout_seconds: float) -> Ranks:
    """Connect with the other ranks at ``address``, ``tcp://host:port`` or ``file://path``, which is the same for all.

    A collective that some rank does not join ends after ``timeout_seconds``: on a CPU with an error, on a GPU with the
    end of the process.

    Raises:
        RuntimeError: not all ranks connected in time.
    """
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(  # pyright: ignore[reportUnknownMemberType]
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        init_method=address,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    return Ranks(rank, size, init_device_mesh(device.type, (size,)))


def leave_ranks() -> None:
    """Leave the process group that ``join_ranks`` made."""
    dist.destroy_process_group()
