"""The weights of a sharded model: each rank writes its own rows, and reads whole tensors one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vigor_client.weight_format.delta import Changes, apply_changes_
from vigor_client.weight_format.writes import Copy, Patch
from vigor_service.engine.interface import Write
from vigor_service.engine.model_weights import ModelWeights


class ShardedWeights(ModelWeights):
    """The parameters and persistent buffers of a sharded model."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return every tensor under its first name; reading a tensor gathers it, which all ranks do together."""
        return _Gathered(super().tensors())

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        """Write this rank's part of the named tensors, in place.

        Raises:
            KeyError, RuntimeError: a name is unknown, or a shape does not fit; earlier writes are applied already.
            TypeError: a write is neither a ``Copy`` nor a ``Patch``.
        """
        own = super().tensors()
        with torch.no_grad():
            for name, write in writes:
                write_part(own[name], write)


class _Gathered(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def write_part(tensor: Tensor, write: Write) -> None:
    """Apply to this rank's rows of a tensor what the write does to the whole tensor.

    Raises:
        RuntimeError: a copy has another shape than the tensor.
        TypeError: the write is neither a ``Copy`` nor a ``Patch``.
    """
    if not isinstance(tensor, DTensor):
        write(tensor)
        return
    local, rows = tensor.to_local(), local_rows(tensor)
    if isinstance(write, Copy):
        if write.values.shape != tensor.shape:
            raise RuntimeError(f"values of shape {list(write.values.shape)} for a tensor of {list(tensor.shape)}")
        local.copy_(write.values[rows])
    elif isinstance(write, Patch):
        apply_changes_(local, _changes_within(write.changes, rows.start * _row_bytes(tensor), local.nbytes))
    else:
        raise TypeError(f"a part cannot be written by {type(write).__name__}: it must be a Copy or a Patch")


def local_rows(tensor: DTensor) -> slice:
    """Return which rows of the whole tensor this rank has: FSDP2 cuts them into equal parts, the last ones smaller."""
    mesh, num_rows = tensor.device_mesh, tensor.shape[0]
    part = -(-num_rows // mesh.size())
    start = min(mesh.get_local_rank() * part, num_rows)
    return slice(start, min(start + part, num_rows))


def _row_bytes(tensor: DTensor) -> int:
    return prod(tensor.shape[1:]) * tensor.element_size()


def _changes_within(changes: Changes, start: int, num_bytes: int) -> Changes:
    """Return the changes that lie within ``num_bytes`` from ``start`` on, with positions counted from ``start``."""
    first, last = np.searchsorted(changes.positions, [start, start + num_bytes])
    return Changes((changes.positions[first:last] - start).astype(np.uint32), changes.values[first:last])
