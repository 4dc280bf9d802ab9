"""Writes packed as plain arrays. A shared store holds them once per machine, and its processes read them in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vigor_client.weight_format.delta import Changes
from vigor_client.weight_format.element_types import dtype_name, torch_dtype
from vigor_client.weight_format.writes import Copy, Patch, VerifiedWrite

CHUNK_BYTES = 256 << 20
"""Maximum size of a chunk, in bytes, unless a single write is larger."""


@dataclass(frozen=True, slots=True)
class PackedWrite:
    """A write to the tensor of this name: all its bytes, or the positions and values of the bytes that change."""

    name: str
    kind: Literal["copy", "patch"]
    dtype: str
    shape: tuple[int, ...]
    arrays: tuple[npt.NDArray[np.generic], ...]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


Chunk: TypeAlias = list[PackedWrite]


def chunks_of(writes: Iterable[tuple[str, VerifiedWrite]], *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yield the writes in chunks, so that outside of the store only one chunk has to be in memory at a time."""
    chunk, num_bytes = list[PackedWrite](), 0
    for name, write in writes:
        packed = _packed(name, write)
        if chunk and num_bytes + packed.num_bytes > chunk_bytes:
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(packed)
        num_bytes += packed.num_bytes
    if chunk:
        yield chunk


def writes_of(chunk: Chunk) -> Iterator[tuple[str, VerifiedWrite]]:
    """Yield the writes of a chunk. They read its arrays in place, without a copy."""
    for packed in chunk:
        yield packed.name, _write(packed)


def _packed(name: str, write: VerifiedWrite) -> PackedWrite:
    if isinstance(write, Patch):
        return PackedWrite(name, "patch", "", (), (write.changes.positions, write.changes.values))
    values = write.values.detach().cpu().contiguous()
    raw = values.reshape(-1).view(torch.uint8).numpy()
    return PackedWrite(name, "copy", dtype_name(values.dtype), tuple(values.shape), (raw,))


def _write(packed: PackedWrite) -> VerifiedWrite:
    if packed.kind == "patch":
        positions, values = packed.arrays
        return Patch(Changes(positions.view(np.uint32), values.view(np.uint8)))
    [raw] = packed.arrays
    dtype = torch_dtype(packed.dtype)
    return Copy(_tensor(raw).view(dtype).view(packed.shape) if raw.nbytes else torch.empty(packed.shape, dtype=dtype))


def _tensor(raw: npt.NDArray[np.generic]) -> Tensor:
    with warnings.catch_warnings():  # a store's arrays cannot be written to, and nothing here writes to them
        warnings.filterwarnings("ignore", message=".*is not writable")
        return torch.from_numpy(raw)  # pyright: ignore[reportUnknownMemberType] - torch declares it so
