"""A service's key in a file of its own, in the encodings in which editors and shells save text."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path


def read_key(path: Path) -> str:
    """Return the key, without the white space around it.

    Raises:
        ValueError: the file is not text; the message does not show its content.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding).strip()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text; give a file with the key on one line") from None
