"""Safetensors files that came from elsewhere: opened only if their list of tensors is of a bounded size."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

MAX_HEADER_BYTES = 16 << 20
"""Room for more than 100,000 tensors in one file."""
_LENGTH_BYTES = 8


def open_tensors(path: Path) -> safe_open:
    """Open a safetensors file; nothing of it is copied until a tensor is asked for.

    Raises:
        SafetensorError: it is none, or its header is larger than `MAX_HEADER_BYTES`.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise SafetensorError(f"its header would have {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
    return safe_open(path, framework="pt")
