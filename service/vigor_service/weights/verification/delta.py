"""Checks whether the files of a delta turn the served tensors into exactly what its checksums promise.

Each changed tensor is patched in a copy on the host and compared with its promised checksum, one tensor at a time. The
served tensors are only read. Knows neither HTTP nor the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from vigor_client.errors import InvalidDeltaError
from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.delta import Changes, apply_changes_, decode_changes
from vigor_client.weight_format.delta_index import INDEX_NAME, MAX_INDEX_BYTES, DeltaIndex
from vigor_client.weight_format.digest import PREFIX, checksum, model_digest, raw_bytes
from vigor_client.weight_format.element_types import is_finite
from vigor_client.weight_format.writes import Patch
from vigor_service.weights.verification.faults import Faults
from vigor_service.weights.verification.tensor_files import TensorFile, open_tensors


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a tensor's changes: the file, and the name in it; and the size of the tensor in bytes."""

    path: Path
    key: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class VerifiedDelta:
    """A delta that may be applied to its base weights."""

    tensors: tuple[TensorInfo, ...]
    digest: str
    num_changed_tensors: int
    _changed: Mapping[str, _Place]  # by canonical name, grouped by file

    def writes(self) -> Iterator[tuple[str, Patch]]:
        """Yield every changed tensor's canonical name, with the write that patches it in the model."""
        for path, places in groupby(self._changed.items(), key=lambda item: item[1].path):
            with open_tensors(path) as file:
                for name, place in places:
                    yield name, Patch(_read(file, place.key, place.num_bytes))


def verify_delta(
    files: Mapping[str, Path],
    served: Sequence[TensorInfo],
    values: Mapping[str, torch.Tensor],
    *,
    base_version: int,
    version: int,
) -> VerifiedDelta:
    """Check the files of a delta against the served tensors, whose ``values`` are only read.

    Raises:
        InvalidRequestError: lists all faults of the index and of the tensors' changes.
    """
    check = _Check(files, served, values)
    index = check.read_index(base_version, version)
    for file_name, names in _names_by_file(index).items() if index else ():
        check.read_file(file_name, names)
    if check.faults:
        raise check.faults.refusal()
    tensors = tuple(
        info.model_copy(update={"checksum": check.checksums.get(info.name, info.checksum)}) for info in served
    )
    return VerifiedDelta(tensors, model_digest(tensors), len(check.changed), check.changed)


def _names_by_file(index: DeltaIndex) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, file_name in index.weight_map.items():
        names.setdefault(file_name, []).append(name)
    return names


class _Check:
    """One pass over the files of a delta."""

    def __init__(
        self, files: Mapping[str, Path], served: Sequence[TensorInfo], values: Mapping[str, torch.Tensor]
    ) -> None:
        self._files = files
        self._expected = {name: info for info in served for name in info.names}
        self._values = values
        self.changed: dict[str, _Place] = {}
        self.checksums: dict[str, str] = {}
        self.faults = Faults()

    def read_index(self, base_version: int, version: int) -> DeltaIndex | None:
        path = self._files.get(INDEX_NAME)
        if path is None:
            return self._refuse("is missing: a delta needs an index", INDEX_NAME)
        if path.stat().st_size > MAX_INDEX_BYTES:
            return self._refuse(f"is larger than {MAX_INDEX_BYTES} bytes", INDEX_NAME)
        try:
            index = DeltaIndex.model_validate_json(path.read_bytes())
        except ValidationError as error:
            for fault in error.errors():
                self._refuse(fault["msg"], INDEX_NAME, *fault["loc"])
            return None
        declared = (int(index.metadata.base_version), int(index.metadata.version))
        if declared != (base_version, version):
            self._refuse(
                f"is for a delta from {declared[0]} to {declared[1]}, not from {base_version} to {version}", INDEX_NAME
            )
        for name in self._files.keys() - {INDEX_NAME, *index.weight_map.values()}:
            self._refuse("is not in the index", name)
        return index

    def read_file(self, file_name: str, names: Sequence[str]) -> None:
        path = self._files.get(file_name)
        known = [name for name in names if name in self._expected]
        unknown = [name for name in names if name not in self._expected]
        self._refuse_all("the model has no such tensor", file_name, unknown)
        if path is None:
            self._refuse_all("was not sent", file_name, known)
            return
        try:
            with open_tensors(path) as file:
                checksums = file.metadata() or {}
                for name in known:
                    self._read_changes(file, name, checksums.get(name), file_name, path)
        except SafetensorError as error:
            self._refuse_all(str(error), file_name, known)

    def _read_changes(self, file: TensorFile, name: str, promised: str | None, file_name: str, path: Path) -> None:
        info = self._expected[name]
        if info.name in self.changed:
            self._refuse(f"changes {info.name} again: the two are tied", file_name, name)
            return
        try:
            new = _patched(self._values[info.name], file, name)
        except (SafetensorError, InvalidDeltaError) as error:
            self._refuse(str(error), file_name, name)
            return
        checksum_of_new = checksum(raw_bytes(new))
        if promised is None or PREFIX + promised != checksum_of_new:
            self._refuse(
                f"has checksum {checksum_of_new} after the change, but {promised} in the index", file_name, name
            )
        elif not is_finite(new):
            self._refuse("has values that are not finite (NaN or infinite) after the change", file_name, name)
        self.changed[info.name] = _Place(path, name, new.nbytes)
        self.checksums[info.name] = checksum_of_new

    def _refuse_all(self, message: str, file_name: str, names: Sequence[str]) -> None:
        self.faults.add_all(message, "files", file_name, names=names)

    def _refuse(self, message: str, *place: str | int) -> None:
        self.faults.add(message, "files", *place)


def _read(file: TensorFile, key: str, num_bytes: int) -> Changes:
    return decode_changes(raw_bytes(file.get_tensor(key)), num_bytes=num_bytes)


def _patched(old: torch.Tensor, file: TensorFile, key: str) -> torch.Tensor:
    changes = _read(file, key, old.nbytes)
    new = old.detach().to("cpu", copy=True)
    apply_changes_(new, changes)
    return new
