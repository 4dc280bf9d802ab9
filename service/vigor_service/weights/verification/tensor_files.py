"""Safetensors files that came from elsewhere: opened only if their list of tensors is of a bounded size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16 << 20
"""Room for more than 100,000 tensors in one file."""
_LENGTH_BYTES = 8


class TensorHeader(Protocol):
    """What a file says of one tensor; ``get_dtype`` returns safetensors' code."""

    def get_dtype(self) -> str: ...
    def get_shape(self) -> list[int]: ...


class TensorFile(Protocol):
    """An open safetensors file: safetensors has no types of its own."""

    def keys(self) -> list[str]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def get_slice(self, name: str) -> TensorHeader: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def open_tensors(path: Path) -> AbstractContextManager[TensorFile]:
    """Open a safetensors file; nothing of it is copied until a tensor is asked for.

    Raises:
        SafetensorError: it is not a safetensors file, or its header is larger than `MAX_HEADER_BYTES`.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise SafetensorError(f"its header would have {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
    return cast("AbstractContextManager[TensorFile]", safe_open(path, framework="pt"))
