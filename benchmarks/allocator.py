"""The heap of the C library or its replacement: resident memory depends on it as much as on the code."""

from __future__ import annotations

import ctypes
import os
import platform

from vigor_service.engine.memory.malloc import trim

_TUNED_BY = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_")
_ALL_ARENAS = 4096  # jemalloc's MALLCTL_ARENAS_ALL


def allocator_name() -> str:
    """Return the name of this process' malloc (jemalloc if preloaded), and how the environment tunes it."""
    if _jemalloc_control() is not None:
        return "jemalloc"
    name = " ".join(platform.libc_ver()).strip() or "the C library's malloc"
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(os.environ.items()) if key in _TUNED_BY)])


def give_back() -> None:
    """Return free memory of the heap to the system, so that resident memory equals memory in use."""
    control = _jemalloc_control()
    if control is None:
        trim()
    elif control(f"arena.{_ALL_ARENAS}.purge".encode(), None, None, None, ctypes.c_size_t(0)):
        raise RuntimeError("jemalloc refused to purge its arenas")


def _jemalloc_control() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), "mallctl", None)
