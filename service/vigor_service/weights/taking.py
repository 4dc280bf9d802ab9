"""A file of an update that this machine can read already: moved into the staging directory, or copied, and hashed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from vigor_client.schemas import FieldError, UpdateFile
from vigor_service.errors import invalid_request
from vigor_service.weights.receiving import BUFFER_BYTES, describe_file
from vigor_service.weights.staging import refusing_full_disk

# Another disk, or a directory that only its owner may change.
_CANNOT_BE_MOVED = (errno.EXDEV, errno.EACCES, errno.EPERM)


def take_file(source: Path, path: Path, announced: UpdateFile) -> None:
    """Bring ``source`` to ``path``, which appears only if the bytes have the announced number and checksum.

    Whoever wrote it no longer finds it there: what was verified cannot be written anew by its name.

    Raises:
        InvalidRequestError: it is missing, no plain file, not readable, or other bytes than were announced.
        StagingFullError: the disk is full.
    """
    partial = path.with_name(path.name + ".part")
    try:
        with refusing_full_disk(f"file {announced.name} of the update does not fit"):
            _require_plain(source.lstat(), announced)  # a pipe would never end, a link may lead anywhere
            _bring(source, partial, announced)
            _require_announced(partial, announced)
            partial.replace(path)
    except OSError as error:
        raise _refuse(announced, f"cannot be taken: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _bring(source: Path, target: Path, announced: UpdateFile) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in _CANNOT_BE_MOVED:
            raise
        with open(source, "rb", opener=_open_no_link) as given, target.open("wb") as copy:
            _require_plain(os.fstat(given.fileno()), announced)
            shutil.copyfileobj(given, copy, BUFFER_BYTES)
    _require_plain(target.lstat(), announced)  # it may have been changed for a link meanwhile


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _require_plain(status: os.stat_result, announced: UpdateFile) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refuse(announced, "is no plain file")
    if status.st_size != announced.num_bytes:
        raise _refuse(announced, f"has {status.st_size} bytes, {announced.num_bytes} were announced")


def _require_announced(path: Path, announced: UpdateFile) -> None:
    found = describe_file(announced.name, path)
    if found != announced:
        raise _refuse(announced, f"has checksum {found.checksum}, {announced.checksum} was announced")


def _refuse(announced: UpdateFile, message: str) -> Exception:
    place = FieldError(loc=["files", announced.name], msg=message)
    return invalid_request([place], consequence="the file is dropped and may be sent again")
