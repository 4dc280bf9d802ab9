"""The processes that are one engine together: how they meet, and how they tell each other what they have."""

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
    """This process, ``rank``, among the ``size`` that are one engine."""

    rank: int
    size: int
    mesh: DeviceMesh

    def exchange(self, value: T) -> list[T]:
        """Return the value of every rank, in their order, on each of them."""
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)  # pyright: ignore[reportUnknownMemberType]
        return cast("list[T]", values)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks."""
        total = values.to(self.mesh.device_type, copy=True)
        dist.all_reduce(total)  # pyright: ignore[reportUnknownMemberType]
        return total


def join_ranks(rank: int, size: int, *, address: str, device: torch.device, timeout_seconds: float) -> Ranks:
    """Meet the other ranks at ``address``, ``tcp://host:port`` or ``file://path``, which is the same for all.

    A collective that some rank does not come to ends after ``timeout_seconds``: on a CPU with an error, on a GPU with
    the process.

    Raises:
        RuntimeError: not all ranks came in time.
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
    """End what ``join_ranks`` began."""
    dist.destroy_process_group()
