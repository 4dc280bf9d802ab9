"""The safetensors format, written as a stream: a header, then the raw bytes of one tensor after the other.

The library's own writer takes all tensors at once; a model is published without ever being in memory twice.
Knows nothing about torch: bytes come from the caller.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vigor_client.schemas import TensorInfo


class ElementType(NamedTuple):
    """How safetensors names a dtype, and the bytes of one element."""

    code: str
    num_bytes: int


ELEMENT_TYPES = {
    "float64": ElementType("F64", 8),
    "float32": ElementType("F32", 4),
    "float16": ElementType("F16", 2),
    "bfloat16": ElementType("BF16", 2),
    "int64": ElementType("I64", 8),
    "int32": ElementType("I32", 4),
    "int16": ElementType("I16", 2),
    "int8": ElementType("I8", 1),
    "uint8": ElementType("U8", 1),
    "bool": ElementType("BOOL", 1),
}
_HEADER_ALIGNMENT_BYTES = 8
_METADATA = {"format": "pt"}


def tensor_num_bytes(tensor: TensorInfo) -> int:
    """Size of the tensor's raw bytes."""
    return math.prod(tensor.shape) * ELEMENT_TYPES[tensor.dtype].num_bytes


def split_into_files(tensors: Iterable[TensorInfo], *, max_file_bytes: int) -> list[list[TensorInfo]]:
    """Split tensors into files of at most ``max_file_bytes`` of data; a larger tensor gets a file of its own.

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
    """The first bytes of a file that holds ``tensors`` in this order, without gaps."""
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
