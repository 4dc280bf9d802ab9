"""Opens safetensors files from other machines or programs, if their header is within a limit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16 << 20
"""Maximum size of a header in bytes, enough for more than 100,000 tensors in one file."""
_LENGTH_BYTES = 8


class TensorHeader(Protocol):
    """Header entry of one tensor. ``get_dtype`` returns safetensors' code of the dtype."""

    def get_dtype(self) -> str: ...
    def get_shape(self) -> list[int]: ...


class TensorFile(Protocol):
    """An open safetensors file. This protocol is needed because safetensors has no type annotations."""

    def keys(self) -> list[str]: ...
    def metadata(self) -> dict[str, str] | None: ...
    def get_slice(self, name: str) -> TensorHeader: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def open_tensors(path: Path) -> AbstractContextManager[TensorFile]:
    """Open a safetensors file. No tensor is copied until it is requested.

    Raises:
        SafetensorError: the file is not a safetensors file, or its header is larger than `MAX_HEADER_BYTES`.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise SafetensorError(f"its header would have {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
    return cast("AbstractContextManager[TensorFile]", safe_open(path, framework="pt"))
