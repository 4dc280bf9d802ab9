"""The input of ``vigor score``: a file or a stream, which the command reads more than once.

Standard input, a named pipe or a process substitution can be read only once, so it is copied to a temporary file first:
this takes disk space instead of memory. Gzip input is decompressed, whatever its file name. UTF-16 and UTF-32 become
UTF-8.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import stat
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from vigor_client.errors import InputError

STANDARD_INPUT = Path("-")
_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_BOM_BYTES = 4


@dataclass(frozen=True, slots=True)
class JsonlInput:
    """Input that can be read again: ``name`` is what the user calls the input, ``path`` the file that holds it."""

    name: str
    path: Path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not blank, as UTF-8 without a byte order mark, and their numbers, counted from 1.

        Raises:
            InputError: the compressed data are damaged, or text that begins as UTF-16 or UTF-32 is not valid as such.
            OSError: the file cannot be read.
        """
        try:
            with self._open() as file:
                for number, line in enumerate(_in_utf8(file), start=1):
                    text = line.removeprefix(BOM_UTF8)  # on any line: the input may be several files joined together
                    if text.strip():
                        yield number, text
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{self.name}: the gzip data is damaged: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.name}: looks like {error.encoding}, but cannot be decoded: {error.reason}"
            ) from error

    def _open(self) -> gzip.GzipFile | BinaryIO:
        with self.path.open("rb") as file:
            is_compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        return gzip.GzipFile(self.path, "rb") if is_compressed else self.path.open("rb")


@contextmanager
def open_input(path: Path) -> Generator[JsonlInput]:
    """Yield the input that ``path`` names: a file, a pipe, or ``-`` for standard input.

    Raises:
        InputError: standard input is closed.
        OSError: the path cannot be read.
    """
    if path != STANDARD_INPUT and stat.S_ISREG(path.stat().st_mode):
        yield JsonlInput(str(path), path)
        return
    name = "standard input" if path == STANDARD_INPUT else str(path)
    with NamedTemporaryFile(prefix="vigor-", suffix=".jsonl") as copy:
        with _standard_input() if path == STANDARD_INPUT else path.open("rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
        yield JsonlInput(name, Path(copy.name))


def _standard_input() -> BinaryIO:
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] - None where a process has none
        raise InputError("standard input is closed")
    return sys.stdin.buffer


def _in_utf8(file: gzip.GzipFile | BinaryIO) -> Iterator[bytes]:
    """Yield the lines of JSON text; a byte order mark or the first characters tell which Unicode encoding it has."""
    encoding = json.detect_encoding(file.read(_LONGEST_BOM_BYTES))
    file.seek(0)
    if encoding.startswith("utf-8"):
        yield from file
        return
    # Unpaired surrogates are let through: the parser of the line reports their place.
    with io.TextIOWrapper(file, encoding, errors="surrogatepass", newline="\n") as text:
        yield from (line.encode(errors="surrogatepass") for line in text)
