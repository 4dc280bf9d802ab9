"""Opens files that other programs wrote: only plain ones, without blocking, and none outside the allowed directory.

Reading a pipe may never end, reading a device may change it, and a link may lead anywhere.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class UnusableFileError(OSError):
    """A file cannot be used; the message says why, without the path."""


def open_plain(path: Path, *, root: Path | None = None) -> BinaryIO:
    """Open a plain file for reading. Links are followed only with ``root``, a resolved path, and only to files in it.

    Raises:
        UnusableFileError: the file is missing, not plain, not readable, or outside the root.
    """
    follow = 0 if root is not None else os.O_NOFOLLOW
    try:
        # O_PATH opens only the place and reads nothing. So the file that is checked is the file that is read, even if
        # another file gets its name meanwhile.
        place = os.open(path, os.O_PATH | os.O_CLOEXEC | follow)
        try:
            _refuse_unusable(place, root)
            return _link_to(place).open("rb")
        finally:
            os.close(place)
    except UnusableFileError:
        raise
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null character, or half a surrogate pair
        raise UnusableFileError("cannot be read: this is not a valid file name") from error


def read_plain(path: Path, *, max_bytes: int, root: Path | None = None) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        UnusableFileError: as `open_plain`, or the file has more than ``max_bytes``.
    """
    with open_plain(path, root=root) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnusableFileError(f"is larger than {max_bytes} bytes")
    return data


def num_bytes_of_plain(path: Path) -> int:
    """Return the number of bytes of a plain file.

    Raises:
        UnusableFileError: as `open_plain`.
    """
    with open_plain(path) as file:
        return os.fstat(file.fileno()).st_size


def _refuse_unusable(place: int, root: Path | None) -> None:
    if not stat.S_ISREG(os.fstat(place).st_mode):
        raise UnusableFileError("is not a regular file")
    if root is not None and not _link_to(place).readlink().is_relative_to(root):
        raise UnusableFileError("is outside the service's --weights-root")


def _link_to(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")
