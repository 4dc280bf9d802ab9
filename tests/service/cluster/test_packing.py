"""Writes come out of arrays as they went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vigor_client.weight_format.delta import Changes
from vigor_client.weight_format.writes import Copy, Patch, VerifiedWrite
from vigor_service.cluster.packing import PackedWrite, chunks_of, writes_of


def read_only(packed: PackedWrite) -> PackedWrite:
    """As an object store hands it out."""
    for array in packed.arrays:
        array.flags.writeable = False
    return packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)])
def test_values_of_every_type_and_shape_are_copied(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = (10 * torch.randn(shape)).to(dtype)
    [chunk] = chunks_of([("a.weight", Copy(values))])
    [(name, write)] = writes_of(list(map(read_only, chunk)))
    target = torch.zeros_like(values)
    write(target)
    assert name == "a.weight"
    assert target.equal(values)


def test_what_lies_in_strides_is_packed_as_it_reads() -> None:
    values = torch.arange(12.0).view(3, 4).T
    [[packed]] = chunks_of([("a", Copy(values))])
    [(_, write)] = writes_of([packed])
    target = torch.zeros(4, 3)
    write(target)
    assert target.equal(values)


def test_changes_travel_as_changes() -> None:
    changes = Changes(np.array([1, 6], np.uint32), np.array([7, 8], np.uint8))
    [[packed]] = chunks_of([("a", Patch(changes))])
    assert packed.num_bytes == 10
    target = torch.zeros(8, dtype=torch.uint8)
    [(_, write)] = writes_of([read_only(packed)])
    write(target)
    assert target.tolist() == [0, 7, 0, 0, 0, 0, 8, 0]


def test_a_chunk_is_bounded_and_one_large_tensor_is_a_chunk() -> None:
    writes: list[tuple[str, VerifiedWrite]] = [(str(n), Copy(torch.zeros(n, dtype=torch.uint8))) for n in (4, 5, 30, 1)]
    assert [[packed.name for packed in chunk] for chunk in chunks_of(writes, chunk_bytes=10)] == [
        ["4", "5"],
        ["30"],
        ["1"],
    ]
    assert list(chunks_of([])) == []
