"""Checksums of files and tensors, and the digest of a whole model.

Client and service both compute them with this module. Needs xxhash, which the extras `service` and `trainer` install;
it is imported on first use, so the base client works without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vigor_client.errors import MissingDependencyError
from vigor_client.schemas.weights import TensorInfo, UpdateFile

if TYPE_CHECKING:
    from typing import Protocol

    import torch

    class Hasher(Protocol):
        """The interface of xxhash's streaming hashes."""

        def update(self, data: Bytes, /) -> None: ...
        def hexdigest(self) -> str: ...


PREFIX = "xxh3-128:"
Bytes = bytes | bytearray | memoryview


def new_hasher() -> Hasher:
    """Return a fresh streaming xxh3-128.

    Raises:
        MissingDependencyError: xxhash is not installed; names the extra that installs it.
    """
    try:
        import xxhash
    except ImportError as error:
        raise MissingDependencyError("xxhash", extra="trainer", purpose="a checksum") from error
    return xxhash.xxh3_128()


def checksum(data: Bytes) -> str:
    """Return ``xxh3-128:<hex>`` of the bytes."""
    hasher = new_hasher()
    hasher.update(data)
    return PREFIX + hasher.hexdigest()


def announce(name: str, chunks: Iterable[Bytes]) -> UpdateFile:
    """Return the announcement of a file of an update; the chunks are read once for its size and checksum."""
    hasher, num_bytes = new_hasher(), 0
    for chunk in chunks:
        hasher.update(chunk)
        num_bytes += len(chunk)
    return UpdateFile(name=name, num_bytes=num_bytes, checksum=PREFIX + hasher.hexdigest())


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes that are hashed: the elements in row-major order, little-endian, for any dtype, strides, device.

    A contiguous tensor on the CPU is not copied. Needs torch.
    """
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def model_digest(tensors: Iterable[TensorInfo]) -> str:
    """Return the digest of a model: xxh3-128 over the sorted lines ``name dtype shape checksum``, each with a newline.

    ``shape`` is written as ``[2,3]``. Equal digests mean equal names, dtypes, shapes and bytes.
    """
    return checksum("".join(sorted(map(_digest_line, tensors))).encode())


def _digest_line(tensor: TensorInfo) -> str:
    shape = "[" + ",".join(map(str, tensor.shape)) + "]"
    return f"{tensor.name} {tensor.dtype} {shape} {tensor.checksum}\n"
