"""A directory that belongs to one process while it lives, and to none once it is gone, however it ended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = "lock"


def try_lock(directory: Path) -> int | None:
    """Return the open lock of a directory, None if another process holds it."""
    descriptor = _open(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, once no other process does."""
    descriptor = _open(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(directory: Path) -> int:
    return os.open(directory / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
