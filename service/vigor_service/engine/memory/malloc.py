"""Return of unused memory of glibc's heap to the system between requests.

Batches of ever new shapes fragment the heap: later tensors fill the holes only in part, so that the resident size of a
service grows for hundreds of requests (docs/decisions/0015-memory-over-many-requests.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from vigor_service.engine.memory.proc import bytes_of

SLACK_BYTES = 256 << 20
"""Growth of the resident size, in bytes, that is not trimmed: returned pages have to be faulted in again."""
MAPPED_BYTES = 1 << 20
"""Size in bytes from which each block gets its own mapping if memory is short."""
MAX_ARENAS = 8
"""Largest number of arenas: the most threads that run batches at once (cpu_workers.py). glibc allows eight per core."""
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # glibc's malloc.h
_TUNED_BY = ("GLIBC_TUNABLES", "MALLOC_")


def resident_bytes(proc: Path = Path("/proc")) -> int | None:
    """Return the resident size of this process in bytes; None if Linux does not report it."""
    return bytes_of("VmRSS", proc / "self/status")


def tune_heap(*, short_of_memory: bool) -> None:
    """Set up glibc's heap for the whole process: call it before threads allocate.

    The number of arenas is set to the number of threads that score. If memory is short, each block of a megabyte or
    more gets its own mapping: it goes back to the system as soon as it is freed. The next block then has to be faulted
    in again, which takes up to a third more time. Does nothing if the C library is not glibc or the environment tunes
    it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith(_TUNED_BY) for name in os.environ):
        return
    mallopt(_M_ARENA_MAX, min(len(os.sched_getaffinity(0)), MAX_ARENAS))
    if short_of_memory:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def trim() -> None:
    """Give free pages of the heap back to the system; does nothing where the C library is not glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class HeapTrimming:
    """Trims the heap when the process has grown by more than ``SLACK_BYTES`` since the last trim."""

    def __init__(
        self, *, trim: Callable[[], None] = trim, resident_bytes: Callable[[], int | None] = resident_bytes
    ) -> None:
        self._trim = trim
        self._resident_bytes = resident_bytes
        self._baseline_bytes = resident_bytes()

    def after_batch(self) -> None:
        """Trim the heap if the process has grown by more than ``SLACK_BYTES``."""
        now = self._resident_bytes()
        if now is None or self._baseline_bytes is None or now - self._baseline_bytes <= SLACK_BYTES:
            return
        self._trim()
        self._baseline_bytes = self._resident_bytes()
