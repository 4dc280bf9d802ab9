"""The changes since a snapshot, ready to be sent: a directory of changes in slime's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

from vigor_client.errors import TensorsRefusedError
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.tensor_reader import read_checked, unknown_names, unsendable
from vigor_client.schemas.weights import TensorInfo, TensorList
from vigor_client.weight_format.delta import MAX_TENSOR_BYTES, encode_changes
from vigor_client.weight_format.delta_index import INDEX_NAME, DeltaIndex
from vigor_client.weight_format.digest import PREFIX, checksum, model_digest, raw_bytes
from vigor_client.weight_format.safetensors_stream import header, tensor_num_bytes
from vigor_client.weight_format.update_plan import Plan, PlannedFile, planned_file, refuse

if TYPE_CHECKING:
    import torch

_FILE_NAME = "model-00001-of-00001.safetensors"
_LARGEST_SHARE = 0.5  # of the bytes of all tensors: above it, decoding costs more than sending fewer bytes saves
_MOST_THREADS = 8


def make_delta_plan(
    tensors: Mapping[str, torch.Tensor], wanted: TensorList, snapshot: WeightSnapshot, *, weight_version: int
) -> Plan | None:
    """Return the changes that turn the snapshot into ``tensors``.

    Return None if a full update is not larger, or if a tensor is too large for a delta.

    ``wanted`` describes the tensors of the snapshot. They are compared and compressed by a few threads, which hold one
    tensor each.

    Raises:
        TensorsRefusedError: tensors do not fit the service's; names each of them.
        MissingDependencyError: xxhash or zstandard is not installed.
    """
    refuse(unsendable(wanted))
    sizes = [tensor_num_bytes(info) for info in wanted.tensors]
    if max(sizes, default=0) > MAX_TENSOR_BYTES:
        return None
    comparison = _Comparison(tensors, snapshot, limit_bytes=int(_LARGEST_SHARE * sum(sizes)))
    comparison.faults |= unknown_names(tensors, wanted)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="encode-weights") as threads:
        described = list(threads.map(comparison.describe, wanted.tensors))
    if comparison.is_too_large:
        return None
    refuse(comparison.faults)
    in_order = {info.name: comparison.changes[info.name] for info in described if info.name in comparison.changes}
    return _plan(described, in_order, wanted, weight_version)


class _Comparison:
    """Compares tensors with the snapshot, on several threads; skips the rest once there are too many changes."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], snapshot: WeightSnapshot, *, limit_bytes: int) -> None:
        self._tensors = tensors
        self._snapshot = snapshot
        self._left_bytes = limit_bytes
        self._lock = Lock()
        self.changes: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}

    @property
    def is_too_large(self) -> bool:
        return self._left_bytes < 0

    def describe(self, info: TensorInfo) -> TensorInfo:
        """Return the tensor's description with the checksum of its new bytes; record its changes or its fault."""
        if self.is_too_large:
            return info
        try:
            data = raw_bytes(read_checked(self._tensors, info))
        except TensorsRefusedError as error:
            with self._lock:
                self.faults |= error.faults
            return info
        compressed = encode_changes(self._snapshot.of(info.name), data)
        if compressed is None:
            return info
        with self._lock:
            self.changes[info.name] = compressed
            self._left_bytes -= len(compressed)
        return info.model_copy(update={"checksum": checksum(data)})


def _plan(described: list[TensorInfo], changes: dict[str, bytes], base: TensorList, weight_version: int) -> Plan:
    checksums = {info.name: info.checksum.removeprefix(PREFIX) for info in described if info.name in changes}
    files = [_changes_file(changes, checksums)] if changes else []
    index = DeltaIndex.between(base.weight_version, weight_version, dict.fromkeys(changes, _FILE_NAME))
    files.append(planned_file(INDEX_NAME, lambda: iter([index.model_dump_json().encode()])))
    return Plan(
        model_digest(described),
        files,
        encoding="delta",
        changes=changes,
        base_version=base.weight_version,
        base_digest=base.weight_digest,
    )


def _changes_file(changes: Mapping[str, bytes], checksums: Mapping[str, str]) -> PlannedFile:
    entries = [
        TensorInfo(name=name, dtype="uint8", shape=[len(data)], checksum=checksums[name])
        for name, data in changes.items()
    ]
    first_bytes = header(entries, checksums)
    return planned_file(_FILE_NAME, lambda: iter([first_bytes, *changes.values()]))
