"""Runs one measurement in a fresh process, with a memory limit; reports why if there is no result."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
_PART_OF_MEMORY = 0.85
_PRELOADED = ["torch", "transformers.models.auto.modeling_auto", "vigor_service.engine.engine"]  # seconds each time


def in_child(task: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | str:
    """Return ``task(*args, **kwargs)`` from a fresh process, or the reason if the system ended that process.

    On a machine without a GPU, an allocation beyond 85 % of the memory that is free now fails in the process, before
    the system has to end it.
    """
    with ProcessPoolExecutor(1, mp_context=_context(), initializer=_bound_memory) as pool:
        try:
            return pool.submit(task, *args, **kwargs).result()
        except BrokenProcessPool:
            return "the process was ended by the system, most likely for its memory"


def attempt(call: Callable[[], object]) -> str | None:
    """Run the call; return None, or the reason if it refused, ran out of memory, or is not installed."""
    try:
        call()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (RuntimeError, ValueError, MemoryError) as error:
        lines = str(error).splitlines()
        return f"{type(error).__name__}: {lines[0][:240] if lines else 'without a message'}"
    return None


def _context() -> BaseContext:
    """Return a context that forks from a process with imports only, or spawns with CUDA, which a fork would break."""
    if torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _bound_memory() -> None:
    if torch.cuda.is_available():
        return  # a CUDA driver maps more memory than it uses
    limit = int(_PART_OF_MEMORY * _available_bytes())
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable: memory is bounded on Linux only")
