"""Moves or copies a file of this machine into the staging directory, and hashes it. A refused file is put back."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

from vigor_client.schemas.problems import FieldError
from vigor_client.schemas.weights import UpdateFile
from vigor_service.errors import invalid_request
from vigor_service.weights.storage.plain_files import open_plain
from vigor_service.weights.storage.staging import refusing_full_disk
from vigor_service.weights.updates.staged_file import BUFFER_BYTES, describe_file, temporary_path

# The file is on another disk, or in a directory that only its owner may change.
_CANNOT_BE_MOVED = (errno.EXDEV, errno.EACCES, errno.EPERM)


def require_takable(source: Path, announced: UpdateFile) -> None:
    """Check that the announced file exists, without moving it.

    Raises:
        InvalidRequestError: the file is missing, is not a plain file, or has another size than announced.
    """
    try:
        _require_plain(source.lstat(), announced)  # a pipe never ends, and a link may lead anywhere
    except OSError as error:
        raise _refuse(announced, f"cannot be taken: {error.strerror}") from error


def take_file(source: Path, path: Path, announced: UpdateFile) -> Generator[None, None, None]:
    """Move or copy ``source`` to ``path``, in steps. ``path`` appears only with the announced size and checksum.

    A file is moved if possible, so that its owner cannot change it after it was hashed. A file that cannot be moved, or
    that has several hard links, is copied, and the original stays.

    Raises:
        InvalidRequestError: the file is missing, not plain, not readable, or differs from the announcement.
        StagingFullError: the disk is full.
    """
    partial = temporary_path(path)
    require_takable(source, announced)
    try:
        with refusing_full_disk(f"file {announced.name} of the update does not fit"):
            if not _move(source, partial):
                yield from _copy(source, partial, announced.num_bytes)
            yield from _require_announced(partial, announced)
            partial.replace(path)
    except OSError as error:
        raise _refuse(announced, f"cannot be taken: {error.strerror or error}") from error
    finally:
        give_back(partial, source)


def give_back(path: Path, source: Path) -> None:
    """Put a file back where it was taken from. If a file is there already, as after a copy, only remove this one."""
    with suppress(OSError):
        if not os.path.lexists(source):
            path.rename(source)
    path.unlink(missing_ok=True)


def _move(source: Path, target: Path) -> bool:
    """Move the file, unless it cannot be moved or has another hard link through which it could be changed.

    Return whether it was moved.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in _CANNOT_BE_MOVED:
            raise
        return False
    if target.lstat().st_nlink == 1:
        return True
    give_back(target, source)
    return False


def _copy(source: Path, target: Path, num_bytes: int) -> Generator[None, None, None]:
    """Copy at most one byte more than announced, because reading a growing file might never end."""
    missing_bytes = num_bytes + 1
    with open_plain(source) as given, target.open("xb") as copy:
        while data := given.read(min(BUFFER_BYTES, missing_bytes)):
            missing_bytes -= copy.write(data)
            yield


def _require_announced(path: Path, announced: UpdateFile) -> Generator[None, None, None]:
    with open_plain(path) as file:
        _require_plain(os.fstat(file.fileno()), announced)  # it may have been replaced since the first check
        found = yield from describe_file(announced.name, file)
    if found != announced:
        raise _refuse(announced, f"has checksum {found.checksum}, {announced.checksum} was announced")


def _require_plain(status: os.stat_result, announced: UpdateFile) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refuse(announced, "is not a regular file")
    if status.st_size != announced.num_bytes:
        raise _refuse(announced, f"has {status.st_size} bytes, {announced.num_bytes} were announced")


def _refuse(announced: UpdateFile, message: str) -> Exception:
    place = FieldError(loc=["files", announced.name], msg=message)
    return invalid_request([place], consequence="the file stays where it is, and may be taken again")
