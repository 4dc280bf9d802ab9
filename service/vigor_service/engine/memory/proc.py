"""Amounts of memory from files of Linux with lines such as ``VmRSS:   1024 kB``."""

from __future__ import annotations

from pathlib import Path


def bytes_of(field: str, file: Path) -> int | None:
    """Return the bytes that a file gives for a field; None if the file or the field does not exist."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
