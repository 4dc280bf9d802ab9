"""Disk space for updates that are under way. One directory per process, locked while it lives.

What a killed process left behind is removed by the next one that starts.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vigor_service.errors import StagingFullError, StartupError
from vigor_service.weights.locking import LOCK_NAME, try_lock

_FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def refusing_full_disk(what: str) -> Iterator[None]:
    """Raise StagingFullError, ``the disk is full: what``, where the system says so."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK_ERRORS:
            raise StagingFullError(f"the disk is full: {what}") from error
        raise


def default_staging_root() -> Path:
    """Return a directory of this user's under the system's temporary directory."""
    return Path(tempfile.gettempdir()) / f"vigor-staging-{os.getuid()}"


class StagingArea:
    """This process's own directory under the staging root.

    Raises:
        StartupError: the root cannot be used, or belongs to somebody else.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(root)
            _remove_stale(root)
            self._directory = root / secrets.token_hex(8)
            self._directory.mkdir(mode=0o700)
            self._lock = try_lock(self._directory)
        except OSError as error:
            raise StartupError(f"staging directory {root}: {error.strerror}") from error

    def create(self, name: str) -> Path:
        """Return a new, empty directory of this name."""
        path = self._directory / name
        path.mkdir()
        return path

    def require_free_bytes(self, num_bytes: int) -> None:
        """Raise StagingFullError unless so many bytes are free."""
        free = shutil.disk_usage(self._directory).free
        if free < num_bytes:
            raise StagingFullError(
                f"the update needs {num_bytes} bytes in the staging directory, {free} are free",
                num_bytes=num_bytes,
                num_free_bytes=free,
            )

    async def remove(self, path: Path) -> None:
        """Free the disk, away from the event loop."""
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def close(self) -> None:
        """Remove everything and let go of the lock."""
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def _refuse_foreign(root: Path) -> None:
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid():
        raise StartupError(f"staging directory {root}: is a link or belongs to somebody else; choose another")


def _remove_stale(root: Path) -> None:
    """Remove the directories whose process is gone: their lock is free."""
    for directory in (path for path in root.iterdir() if path.is_dir() and (path / LOCK_NAME).exists()):
        lock = try_lock(directory)
        if lock is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)
