"""Locks of directories. The system frees the lock of a process when the process ends, even if it is killed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout, UnixFileLock

_NAME = "lock"


def try_lock(directory: Path) -> UnixFileLock | None:
    """Return the lock of a directory, held until its ``release``; None if another process holds it."""
    lock = _lock(directory)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Wait for the lock of a directory, and hold it in the context."""
    with _lock(directory):
        yield


def _lock(directory: Path) -> UnixFileLock:
    # A file system without flock is an error: the library's fallback lock would remain after a process was killed.
    # Not thread_local: a service may be started on one thread and ended on another.
    return UnixFileLock(directory / _NAME, mode=0o600, thread_local=False, fallback_to_soft=False)
