"""The input of ``vigor score``, which is read more than once: a file, or whatever gives its bytes once only.

Standard input, a named pipe or a process substitution is copied to a temporary file first, so that disk is needed for
it and not memory. What is compressed by gzip is decompressed, whatever its name.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from vigor_client.errors import InputError

STANDARD_INPUT = Path("-")
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class JsonlInput:
    """Lines that can be read again: ``name`` is what the user calls them, ``path`` where they are."""

    name: str
    path: Path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not blank with their numbers, counted from 1.

        Raises:
            InputError: what is compressed is damaged.
            OSError: the file cannot be read.
        """
        try:
            with self._open() as file:
                yield from ((number, text) for number, text in enumerate(file, start=1) if text.strip())
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{self.name}: compressed by gzip, and damaged: {error}") from error

    def _open(self) -> gzip.GzipFile | BinaryIO:
        with self.path.open("rb") as file:
            is_compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        return gzip.GzipFile(self.path, "rb") if is_compressed else self.path.open("rb")


@contextmanager
def open_input(path: Path) -> Generator[JsonlInput]:
    """Yield what ``path`` names: a file, a pipe, or ``-`` for standard input."""
    if path != STANDARD_INPUT and stat.S_ISREG(path.stat().st_mode):
        yield JsonlInput(str(path), path)
        return
    name = "standard input" if path == STANDARD_INPUT else str(path)
    with NamedTemporaryFile(prefix="vigor-", suffix=".jsonl") as copy:
        with sys.stdin.buffer if path == STANDARD_INPUT else path.open("rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
        yield JsonlInput(name, Path(copy.name))
