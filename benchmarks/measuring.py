"""Time and peak memory of one call, on a CPU or a CUDA device."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.allocator import allocator_name, give_back
from vigor_service.engine.memory.proc import bytes_of
from vigor_service.engine.ops.gemm import linear
from vigor_service.engine.ops.library_choice import cpu_name

T = TypeVar("T")
_PROCESS = Path("/proc/self")
_LIBRARY_NAMES = {"Math Kernel Library": "MKL", "MKL-DNN": "oneDNN"}


def default_device() -> str:
    """Return the GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Run the call and return its result with the seconds it took."""
    _synchronize(device)
    start = time.perf_counter()
    result = call()
    _synchronize(device)
    return result, time.perf_counter() - start


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Run the call and return its peak memory above what was in memory when it began."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    before = _reset_peak_resident_bytes()
    call()
    return resident_bytes("VmHWM") - before


def bound_gpu_memory(most_bytes: int) -> None:
    """Let torch take so much of the current GPU and no more; its context, half a GiB or so, comes on top."""
    torch.cuda.set_per_process_memory_fraction(most_bytes / torch.cuda.get_device_properties().total_memory)


def card_bytes(device: torch.device) -> int | None:
    """Return what all processes together have of a GPU; None of a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak_resident_bytes() -> int:
    """Give freed memory back to the system, start the peak anew, and return what is resident now."""
    give_back()
    (_PROCESS / "clear_refs").write_text("5")
    return resident_bytes()


def resident_bytes(field: str = "VmRSS", *, pid: int | None = None) -> int:
    """Return what a process (None: this one) has in memory now, or (``VmHWM``) had at most."""
    status = Path("/proc") / ("self" if pid is None else str(pid)) / "status"
    num_bytes = bytes_of(field, status)
    if num_bytes is None:
        raise RuntimeError(f"{status} has no {field}: memory is measured on Linux only")
    return num_bytes


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of large matrix products, the best of a few by either library, as the ceiling of all else.

    The libraries are torch's own product and that of the engine's linear layers.
    """
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = (lambda: left @ right, lambda: linear(left, right))
    for product in products:
        product()  # warms up
    seconds = min(timed(product, device)[1] for _ in range(8) for product in products)
    return 2 * size**3 / seconds


def hardware(device: torch.device) -> str:
    """Name the processor or the card; with a processor, its vector extensions as torch uses them, and its allocator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {capability}, {torch.get_num_threads()} threads, {allocator_name()}"


def product_libraries(config: str | None = None) -> list[str]:
    """Return the libraries of a CPU's matrix products with their versions, as torch says it was built (``config``)."""
    found = re.findall(r"(Math Kernel Library|MKL-DNN) (?:Version )?v?([\d.]+)", config or torch.__config__.show())
    return [f"{_LIBRARY_NAMES[name]} {version}" for name, version in found]
