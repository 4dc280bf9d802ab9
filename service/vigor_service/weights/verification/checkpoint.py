"""Checks whether the files of a checkpoint, loaded as transformers loads them, yield the model's tensors.

Names, dtypes and layout of the files are the checkpoint's. What is checked, covered by the digest and written are the
model's own tensors. Each tensor is converted twice, to be verified and to be written, so that no second copy of the
model is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError

from vigor_client.schemas.weights import TensorInfo
from vigor_client.weight_format.digest import checksum, model_digest, raw_bytes
from vigor_client.weight_format.element_types import dtype_name, is_finite, torch_dtype
from vigor_client.weight_format.writes import Copy
from vigor_service.engine.interface import CheckpointPlan, Conversion, ConversionError, Read
from vigor_service.weights.verification.faults import Faults
from vigor_service.weights.verification.tensor_files import open_tensors

MAX_CHECKPOINT_TENSORS = 1 << 18
"""Maximum number of tensors: twice that of the largest mixtures of experts, in which each expert has its own scales."""

PlanCheckpoint: TypeAlias = Callable[[Iterable[str]], CheckpointPlan]


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint that may be swapped in: the model's tensors after the swap, and how to convert them."""

    tensors: tuple[TensorInfo, ...]
    digest: str
    num_changed_tensors: int
    conversions: Sequence[Conversion]
    paths: Mapping[str, Path]  # the file of each tensor in the checkpoint

    def writes(self) -> Iterator[tuple[str, Copy]]:
        """Yield the canonical name of every tensor once, with the write that copies its new values into the model."""
        expected, written = _by_any_name(self.tensors), set[str]()
        with _reading(self.paths) as read:
            for conversion in self.conversions:
                dtype = torch_dtype(expected[conversion.target].dtype)
                for name, tensor in conversion.tensors(read, dtype).items():
                    if (canonical := expected[name].name) not in written:
                        written.add(canonical)
                        yield canonical, Copy(tensor)


def verify_checkpoint(
    files: Mapping[str, Path], served: Sequence[TensorInfo], plan_checkpoint: PlanCheckpoint
) -> VerifiedCheckpoint:
    """Check a checkpoint's files against the served tensors, and describe the model with the new ones.

    Raises:
        InvalidRequestError: lists every file that is not safetensors, and every faulty tensor: one that the model
            neither has nor ignores, or that is missing, appears twice, is not finite, has another shape or kind of
            number, or differs from a tensor that it is tied to.
    """
    check = _Check(served)
    paths = check.find_tensors(files)
    if len(paths) > MAX_CHECKPOINT_TENSORS:
        check.faults.add(f"hold {len(paths)} tensors, at most {MAX_CHECKPOINT_TENSORS} are read", "files")
        raise check.faults.refusal()
    plan = plan_checkpoint(paths)
    check.refuse_unexpected(plan.unexpected, paths)
    with _reading(paths) as read:
        for conversion in plan.conversions:
            check.make(conversion, read)
    check.find_missing()
    check.compare_aliases()
    if check.faults:
        raise check.faults.refusal()
    tensors = tuple(info.model_copy(update={"checksum": check.checksum_of(info)}) for info in served)
    return VerifiedCheckpoint(
        tensors=tensors,
        digest=model_digest(tensors),
        num_changed_tensors=sum(new != old for new, old in zip(tensors, served, strict=True)),
        conversions=plan.conversions,
        paths=paths,
    )


class _Check:
    """One pass over a checkpoint."""

    def __init__(self, served: Sequence[TensorInfo]) -> None:
        self._served = served
        self._expected = _by_any_name(served)
        self._checksums: dict[str, str] = {}  # of the tensors without faults
        self._made: set[str] = set()  # all converted tensors, with or without faults
        self.faults = Faults()

    def find_tensors(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """Return the file of each tensor, by tensor name."""
        found: dict[str, Path] = {}
        for file_name, path in files.items():
            if len(found) > MAX_CHECKPOINT_TENSORS:
                break
            try:
                with open_tensors(path) as file:
                    names = file.keys()
            except SafetensorError as error:
                self.faults.add(f"not a safetensors file: {error}", "files", file_name)
                continue
            for name in names:
                if name in found:
                    message = f"is in file {found[name].name} already: send each tensor once"
                    self.faults.add(message, "files", file_name, name)
                found[name] = path
        return found

    def refuse_unexpected(self, names: Sequence[str], paths: Mapping[str, Path]) -> None:
        prefix = common_prefix(paths)
        hint = f"; all names begin with {prefix!r}: save the model without its wrapper" if prefix else ""
        for name in names:
            self.faults.add(f"the model has no such tensor{hint}", "files", paths[name].name, name)

    def make(self, conversion: Conversion, read: Read) -> None:
        info = self._expected[conversion.target]
        self._made.add(conversion.target)
        try:
            made = conversion.tensors(read, torch_dtype(info.dtype))
        except ConversionError as error:
            self.faults.add(str(error), "tensors", conversion.target)
            return
        for name, tensor in made.items():
            self._made.add(name)
            self._check(name, tensor)

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        info = self._expected.get(name)
        if info is None:
            self.faults.add("the model has no such tensor", "tensors", name)
            return
        shape, dtype = list(tensor.shape), dtype_name(tensor.dtype)
        if (dtype, shape) != (info.dtype, info.shape):
            self.faults.add(f"is {dtype} {shape}, the model needs {info.dtype} {info.shape}", "tensors", name)
        elif not is_finite(tensor):
            self.faults.add("has values that are not finite (NaN or infinite)", "tensors", name)
        else:
            self._checksums[name] = checksum(raw_bytes(tensor))

    def find_missing(self) -> None:
        for info in self._served:
            if self._made.isdisjoint(info.names):
                self.faults.add(f"is missing, the model needs {info.dtype} {info.shape}", "tensors", info.name)

    def compare_aliases(self) -> None:
        for info in self._served:
            first, *others = [name for name in info.names if name in self._checksums] or [info.name]
            for name in others:
                if self._checksums[name] != self._checksums[first]:
                    self.faults.add(f"is tied to {first} but has different values", "tensors", name)

    def checksum_of(self, info: TensorInfo) -> str:
        return next(self._checksums[name] for name in info.names if name in self._checksums)


def common_prefix(names: Iterable[str]) -> str:
    """Return the first part of the dotted names, with its dot, if all names share it; else an empty text."""
    parts = {name.split(".", 1)[0] if "." in name else "" for name in names}
    return f"{parts.pop()}." if len(parts) == 1 and "" not in parts else ""


@contextmanager
def _reading(paths: Mapping[str, Path]) -> Generator[Read]:
    """Yield a function that reads a tensor by its name. Every file is opened once."""
    with ExitStack() as stack:
        opened = {path: stack.enter_context(open_tensors(path)) for path in set(paths.values())}
        yield lambda name: opened[paths[name]].get_tensor(name)


def _by_any_name(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    return {name: info for info in tensors for name in info.names}
