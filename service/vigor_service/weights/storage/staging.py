"""Disk space for open updates. Each process has one directory, which is locked while the process lives.

A process that starts removes the directories of killed processes. Processes that start at the same time do this one
after the other, so that none mistakes the new directory of another for an abandoned one.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from vigor_service.errors import DeadlineExceededError, StagingFullError, StartupError
from vigor_service.threads.file_threads import FileThreads
from vigor_service.weights.storage.file_lock import locked, try_lock
from vigor_service.weights.storage.removal import remove

_logger = logging.getLogger(__name__)

_TOKEN_BYTES = 8
_OWN_NAME = re.compile(f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
_FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def refusing_full_disk(what: str) -> Generator[None]:
    """Turn the system's errors about a full disk into StagingFullError, ``the disk is full: what``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK_ERRORS:
            raise StagingFullError(f"the disk is full: {what}") from error
        raise


def default_staging_root() -> Path:
    """Return this user's directory under the system's temporary directory."""
    return Path(tempfile.gettempdir()) / f"vigor-staging-{os.getuid()}"


class StagingArea:
    """This process's own directory under the staging root.

    Raises:
        StartupError: the root cannot be used, or belongs to another user.
    """

    def __init__(self, root: Path, threads: FileThreads) -> None:
        self._threads = threads
        self._directory = root / secrets.token_hex(_TOKEN_BYTES)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(root)
            with locked(root):
                self._directory.mkdir(mode=0o700)
                self._lock = try_lock(self._directory)
                stale = self._take_over_stale(root)
        except OSError as error:
            raise StartupError(f"staging directory {root}: {error.strerror}") from error
        for directory in stale:
            remove(directory)

    def _take_over_stale(self, root: Path) -> list[Path]:
        """Move the directories of ended processes into this process's directory, to remove them without the lock."""
        stale: list[Path] = []
        for path in root.iterdir():
            with suppress(FileNotFoundError):  # its process is just removing it
                if _is_stale(path):
                    stale.append(path.rename(self._directory / path.name))
        return stale

    def directory(self, name: str) -> Path:
        """Return the path at which `create` makes the directory of this name."""
        return self._directory / name

    async def create(self, name: str, *, num_bytes: int) -> None:
        """Create an empty directory of this name, into which ``num_bytes`` will be written.

        Raises:
            StagingFullError: the disk has less free space.
            DeadlineExceededError: the disk does not answer.
        """
        await self._threads.run("staging", self._create, name, num_bytes)

    def _create(self, name: str, num_bytes: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if free < num_bytes:
            raise StagingFullError(
                f"the update needs {num_bytes} bytes in the staging directory, {free} are free",
                num_bytes=num_bytes,
                num_free_bytes=free,
            )
        with refusing_full_disk("no disk space for an update"):
            self.directory(name).mkdir()

    async def remove(self, path: Path) -> None:
        """Remove a directory, off the event loop. If the disk does not answer, that is only logged."""
        try:
            await self._threads.run("removal", self._remove, path)
        except DeadlineExceededError as error:
            _logger.warning("not_removed", extra={"path": path, "reason": error.detail})

    def _remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            # Renamed first, so that a file that is still being received finds no directory to be written into.
            remove(path.rename(self._directory / secrets.token_hex(_TOKEN_BYTES)))

    def close(self) -> None:
        """Remove everything, and release the lock."""
        remove(self._directory)
        if self._lock is not None:
            self._lock.release()


def _refuse_foreign(root: Path) -> None:
    status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid():
        raise StartupError(f"staging directory {root}: is a link or belongs to another user; choose another")


def _is_stale(directory: Path) -> bool:
    """Return whether this is a directory of an ended process: no other process holds its lock."""
    if not _OWN_NAME.fullmatch(directory.name) or directory.is_symlink() or not directory.is_dir():
        return False
    lock = try_lock(directory)
    if lock is not None:
        lock.release()
    return lock is not None
