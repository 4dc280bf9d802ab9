"""How much memory may still be taken: of a GPU, or of the machine and the control group that this process runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from vigor_service.engine.memory.proc import bytes_of

CUDA_RESERVE_BYTES = 512 << 20  # left free for library workspaces and fragmentation

# Of one control group: the file of its limit, the file of its use, and the statistic of file cache to reclaim.
_FILES_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_FILES_V2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that may still be allocated for the device; None if the number is not known."""
    return _free_cuda_bytes(device) if device.type == "cuda" else free_host_bytes()


def free_host_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the smallest of MemAvailable and what is left under the limit of each control group above this process.

    None if the kernel reports neither.
    """
    available = bytes_of("MemAvailable", proc / "meminfo")
    limits = [*_left_in_groups(proc / "self/cgroup", cgroups), *([] if available is None else [available])]
    return max(0, min(limits)) if limits else None


def _free_cuda_bytes(device: torch.device) -> int:
    """Return the bytes that the driver has free and torch holds unused, within torch's limit, minus the reserve."""
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - torch.cuda.memory_allocated(device)
    return max(0, min(free + unused, allowed) - CUDA_RESERVE_BYTES)


def _left_in_groups(membership: Path, cgroups: Path) -> Iterator[int]:
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield from _left_along(cgroups / "memory", path, _FILES_V1)
        elif not controllers:
            yield from _left_along(cgroups, path, _FILES_V2)


def _left_along(root: Path, path: str, files: tuple[str, str, str]) -> Iterator[int]:
    """Yield the bytes left in the group and each one above it; a container may see its own group only as the root."""
    group = root / path.strip("/")
    for directory in (group, *group.parents):
        if directory.is_relative_to(root):
            yield from _left_in(directory, *files)


def _left_in(directory: Path, limit_file: str, usage_file: str, cache_name: str) -> Iterator[int]:
    limit, usage = (next(iter(_lines(directory / name)), "max") for name in (limit_file, usage_file))
    if limit == "max" or usage == "max":
        return  # no limit, or no such group
    statistics = dict(line.split() for line in _lines(directory / "memory.stat"))
    yield int(limit) - int(usage) + int(statistics.get(cache_name, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
