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
    """Run the call and return its peak memory minus the memory in use before it."""
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
    """Limit the memory that torch takes of the current GPU; its context, about half a GiB, comes on top."""
    torch.cuda.set_per_process_memory_fraction(most_bytes / torch.cuda.get_device_properties().total_memory)


def card_bytes(device: torch.device) -> int | None:
    """Return the GPU memory in use by all processes together; None for a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak_resident_bytes() -> int:
    """Return freed memory to the system, reset the peak, and return the resident memory."""
    give_back()
    (_PROCESS / "clear_refs").write_text("5")
    return resident_bytes()


def resident_bytes(field: str = "VmRSS", *, pid: int | None = None) -> int:
    """Return a process' resident memory (None: this process), or with ``VmHWM`` its peak."""
    status = Path("/proc") / ("self" if pid is None else str(pid)) / "status"
    num_bytes = bytes_of(field, status)
    if num_bytes is None:
        raise RuntimeError(f"{status} has no {field}: memory is measured on Linux only")
    return num_bytes


def gemm_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of a few large matrix products by either library, as an upper limit for everything else.

    The libraries are torch's own product and the one of the engine's linear layers.
    """
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = (lambda: left @ right, lambda: linear(left, right))
    for product in products:
        product()  # warm-up
    seconds = min(timed(product, device)[1] for _ in range(8) for product in products)
    return 2 * size**3 / seconds


def hardware(device: torch.device) -> str:
    """Return the name of the processor, with the vector extensions that torch uses and the allocator, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {capability}, {torch.get_num_threads()} threads, {allocator_name()}"


def product_libraries(config: str | None = None) -> list[str]:
    """Return the libraries of a CPU's matrix products with their versions, as torch says it was built (``config``)."""
    found = re.findall(r"(Math Kernel Library|MKL-DNN) (?:Version )?v?([\d.]+)", config or torch.__config__.show())
    return [f"{_LIBRARY_NAMES[name]} {version}" for name, version in found]
