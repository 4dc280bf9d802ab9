"""How much memory a model's device has, and how much of it this process holds."""

from __future__ import annotations

from pathlib import Path

import torch

from vigor_service.engine.memory.proc import bytes_of


def device_memory_bytes(device: torch.device, proc: Path = Path("/proc")) -> dict[str, int]:
    """Return the bytes ``allocated`` to tensors, ``reserved`` for them by torch, and in ``total`` on the device.

    On a CPU, the first two are the resident size of the process and ``total`` is the machine's memory; each is 0 if
    Linux does not report it.
    """
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "total": torch.cuda.get_device_properties(device).total_memory,  # pyright: ignore[reportUnknownMemberType]
        }
    resident = bytes_of("VmRSS", proc / "self/status") or 0
    return {"allocated": resident, "reserved": resident, "total": bytes_of("MemTotal", proc / "meminfo") or 0}
