"""Checks whether files hold the model's tensors: all of them, or some. Knows neither HTTP nor the engine.

All faults are collected before the update is refused. Only one tensor at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.digest import checksum, model_digest, raw_bytes
from vigor_client.weight_format.element_types import dtype_of_code, is_finite
from vigor_client.weight_format.writes import Copy
from vigor_service.weights.verification.faults import Faults
from vigor_service.weights.verification.tensor_files import TensorFile, open_tensors


@dataclass(frozen=True, slots=True)
class VerifiedUpdate:
    """Tensors that may be swapped in: all tensors of the model after the swap, and the files of the new values."""

    tensors: tuple[TensorInfo, ...]
    digest: str
    num_changed_tensors: int
    paths: Mapping[str, Path]

    def writes(self) -> Iterator[tuple[str, Copy]]:
        """Yield the canonical name of every tensor in the files, with the write that copies it into the model."""
        for path in set(self.paths.values()):
            with open_tensors(path) as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                    if name in self.paths:
                        yield name, Copy(file.get_tensor(name))


def verify_tensors(files: Mapping[str, Path], served: Sequence[TensorInfo], *, partial: bool = False) -> VerifiedUpdate:
    """Check the files against the served tensors, and describe the model with the new ones.

    With ``partial`` the files need at least one tensor instead of all; the other tensors stay as they are served.

    Raises:
        InvalidRequestError: lists every file that is not safetensors, and every faulty tensor: one that is unknown,
            missing, or appears twice, has another shape or dtype, is not finite, or is an alias that differs from its
            canonical tensor.
    """
    check = _Check(served)
    for name, path in files.items():
        check.read_file(name, path)
    check.find_missing(partial=partial)
    check.compare_aliases()
    if check.faults:
        raise check.faults.refusal()
    tensors = tuple(
        info.model_copy(update={"checksum": check.checksums.get(info.name, info.checksum)}) for info in served
    )
    return VerifiedUpdate(
        tensors=tensors,
        digest=model_digest(tensors),
        num_changed_tensors=sum(new != old for new, old in zip(tensors, served, strict=True)),
        paths={info.name: check.paths[info.name] for info in served if info.name in check.paths},
    )


class _Check:
    """One pass over the files of an update."""

    def __init__(self, served: Sequence[TensorInfo]) -> None:
        self._served = served
        self._expected = {name: info for info in served for name in info.names}
        self._homes: dict[str, str] = {}  # name of each tensor's file
        self.paths: dict[str, Path] = {}
        self.checksums: dict[str, str] = {}
        self.faults = Faults()

    def read_file(self, file_name: str, path: Path) -> None:
        try:
            with open_tensors(path) as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                    self._read_tensor(file, name, file_name, path)
        except SafetensorError as error:
            self.faults.add(f"not a safetensors file: {error}", "files", file_name)

    def _read_tensor(self, file: TensorFile, name: str, file_name: str, path: Path) -> None:
        expected, header = self._expected.get(name), file.get_slice(name)
        dtype, shape = dtype_of_code(header.get_dtype()), header.get_shape()
        if expected is None:
            self.faults.add("the model has no such tensor", "files", file_name, name)
        elif name in self._homes:
            self.faults.add(f"is in file {self._homes[name]} already: send each tensor once", "files", file_name, name)
        elif (dtype, shape) != (expected.dtype, expected.shape):
            self._homes[name] = file_name
            got, needed = f"{dtype} {shape}", f"{expected.dtype} {expected.shape}"
            self.faults.add(f"is {got}, the model needs {needed}", "files", file_name, name)
        else:
            self._homes[name] = file_name
            self._read_values(file.get_tensor(name), name, file_name, path)

    def _read_values(self, tensor: torch.Tensor, name: str, file_name: str, path: Path) -> None:
        if not is_finite(tensor):
            self.faults.add("has values that are not finite (NaN or infinite)", "files", file_name, name)
        self.paths[name] = path
        self.checksums[name] = checksum(raw_bytes(tensor))

    def find_missing(self, *, partial: bool) -> None:
        if partial and not self._homes and not self.faults:
            self.faults.add("hold no tensor: a partial update has at least one", "files")
        for info in self._served:
            sent = [alias for alias in info.aliases if alias in self._homes]
            if info.name in self._homes or (partial and not sent):
                continue
            hint = f"; it was sent as {sent[0]}: send it under its canonical name" if sent else ""
            self.faults.add(f"is missing, the model needs {info.dtype} {info.shape}{hint}", "tensors", info.name)

    def compare_aliases(self) -> None:
        for info in self._served:
            canonical = self.checksums.get(info.name)
            for alias in info.aliases:
                if canonical is not None and self.checksums.get(alias, canonical) != canonical:
                    self.faults.add(
                        f"is tied to {info.name} but has different values", "files", self._homes[alias], alias
                    )
