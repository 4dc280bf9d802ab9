"""Reads and writes the safetensors format as a stream: a header, then the raw bytes of one tensor after the other.

The library's own writer needs all tensors at once; with this one, a model is published without being in memory twice.
Knows nothing about torch: bytes come from the caller.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

from pydantic import BaseModel, Field, RootModel, ValidationError

from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.element_types import ELEMENT_TYPES

_HEADER_ALIGNMENT_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_METADATA = {"format": "pt"}


def tensor_num_bytes(tensor: TensorInfo) -> int:
    """Return the size of the tensor's raw bytes."""
    return math.prod(tensor.shape) * ELEMENT_TYPES[tensor.dtype].num_bytes


def split_into_files(tensors: Iterable[TensorInfo], *, max_file_bytes: int) -> list[list[TensorInfo]]:
    """Return the tensors of each file, with at most ``max_file_bytes`` of data; a larger tensor gets its own file.

    Wide dtypes come first, so that every tensor starts at a multiple of its element size.
    """
    files: list[list[TensorInfo]] = []
    room_bytes = 0
    for tensor in sorted(tensors, key=lambda tensor: (-ELEMENT_TYPES[tensor.dtype].num_bytes, tensor.name)):
        if not files or tensor_num_bytes(tensor) > room_bytes:
            files.append([])
            room_bytes = max_file_bytes
        files[-1].append(tensor)
        room_bytes -= tensor_num_bytes(tensor)
    return files


def header(tensors: Sequence[TensorInfo], metadata: Mapping[str, str] = _METADATA) -> bytes:
    """Return the first bytes of a file that holds ``tensors`` in this order, without gaps."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        stop = start + tensor_num_bytes(tensor)
        code = ELEMENT_TYPES[tensor.dtype].code
        entries[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


OpenFile = Callable[[Path], BinaryIO]
"""A function that opens a file for reading; raises OSError."""


def open_for_reading(path: Path) -> BinaryIO:
    """Return ``path.open("rb")``."""
    return path.open("rb")


class TensorEntry(NamedTuple):
    """The place of a tensor in a file, in bytes from its start, its dtype and shape; ``code`` is safetensors' dtype."""

    code: str
    shape: list[int]
    start: int
    num_bytes: int


class _Entry(BaseModel):
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class _Header(RootModel[dict[str, _Entry]]):
    pass


def read_header(path: Path, *, open_file: OpenFile = open_for_reading) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file, by name; reads only its header.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file, or is cut off.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("it has no header of a safetensors file")
        entries = _entries(file.read(length))
    data_start = 8 + length
    if any(not first <= last <= size - data_start for first, last in (e.data_offsets for e in entries.values())):
        raise ValueError("it is cut off, or its header is wrong")
    return {
        name: TensorEntry(
            entry.dtype,
            entry.shape,
            data_start + entry.data_offsets[0],
            entry.data_offsets[1] - entry.data_offsets[0],
        )
        for name, entry in entries.items()
    }


def _entries(text: bytes) -> dict[str, _Entry]:
    fields: object = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("its header is no object")
    fields.pop("__metadata__", None)  # pyright: ignore[reportUnknownMemberType] - checked below
    try:
        return _Header.model_validate(fields).root
    except ValidationError as error:
        raise ValueError(f"its header is wrong: {error.errors()[0]['msg']}") from error
