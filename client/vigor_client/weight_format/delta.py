"""The changes of one tensor between two versions: positions of bytes, and their new values.

The encoding is the one that slime calls ``overwrite``, which may be applied twice without harm. It holds the number of
changed bytes (u4), their positions (u4 each, ascending), then the new bytes; little-endian, compressed by zstd. Needs
numpy and zstandard, which the extras `service` and `trainer` install. Both are imported on first use, so the base
client works without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vigor_client.errors import InvalidDeltaError, MissingDependencyError
from vigor_client.weight_format.digest import Bytes

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt
    import torch

MAX_TENSOR_BYTES = 2**32
"""Maximum size of a tensor that can be sent as a delta: a position has four bytes."""
_POSITION = "<u4"
_POSITION_BYTES = 4
_LEVEL = 1  # most of the data are positions, which compress about equally well at any level


@dataclass(frozen=True, slots=True)
class Changes:
    """``data[positions] = values`` turns the old bytes of a tensor into the new ones."""

    positions: npt.NDArray[np.uint32]
    values: npt.NDArray[np.uint8]


def encode_changes(old: Bytes, new: Bytes) -> bytes | None:
    """Return the compressed changes from the ``old`` bytes of a tensor to its ``new`` ones; None if there are none.

    Raises:
        ValueError: the two differ in length, or have more than `MAX_TENSOR_BYTES`.
        MissingDependencyError: zstandard is not installed.
    """
    import numpy as np

    if len(old) != len(new) or len(new) > MAX_TENSOR_BYTES:
        raise ValueError(
            f"cannot encode changes from {len(old)} to {len(new)} bytes: give as many, at most {MAX_TENSOR_BYTES}"
        )
    new_bytes = np.frombuffer(new, np.uint8)
    positions = np.flatnonzero(new_bytes != np.frombuffer(old, np.uint8))
    if not len(positions):
        return None
    count = np.array([len(positions)], _POSITION)
    payload = b"".join([count.tobytes(), positions.astype(_POSITION).tobytes(), new_bytes[positions].tobytes()])
    return _zstandard().ZstdCompressor(level=_LEVEL).compress(payload)


def decode_changes(compressed: Bytes, *, num_bytes: int) -> Changes:
    """Return the changes of a tensor of ``num_bytes``, as ``encode_changes`` wrote them.

    The tensor's size bounds the memory, also if the compressed bytes announce more.

    Raises:
        InvalidDeltaError: the bytes are not such changes; says why.
        MissingDependencyError: zstandard is not installed.
    """
    import numpy as np

    payload = _decompress(compressed, limit=_POSITION_BYTES + (_POSITION_BYTES + 1) * num_bytes)
    if len(payload) < _POSITION_BYTES:
        raise InvalidDeltaError("holds no number of changes")
    (count,) = np.frombuffer(payload, _POSITION, 1)
    values_start = _POSITION_BYTES * (1 + int(count))
    if len(payload) != values_start + int(count):
        raise InvalidDeltaError(f"announces {count} changes in {len(payload)} bytes")
    positions = np.frombuffer(payload, _POSITION, int(count), _POSITION_BYTES)
    if count and (int(positions[-1]) >= num_bytes or not (positions[1:] > positions[:-1]).all()):
        raise InvalidDeltaError(f"has positions that do not ascend, or lie beyond the tensor's {num_bytes} bytes")
    return Changes(positions, np.frombuffer(payload, np.uint8, int(count), values_start))


def apply_changes_(tensor: torch.Tensor, changes: Changes) -> None:
    """Do ``bytes(tensor)[positions] = values`` in place, on the tensor's device, for any strides.

    Only the changes are copied to the device; a contiguous tensor itself is not copied.
    """
    import torch

    positions = torch.as_tensor(changes.positions.astype("int64"), device=tensor.device)
    values = torch.as_tensor(changes.values.copy(), device=tensor.device)
    flat = tensor.detach().contiguous().view(-1)  # shares the tensor's memory if it is contiguous
    flat.view(torch.uint8).index_copy_(0, positions, values)
    if not tensor.is_contiguous():
        tensor.detach().copy_(flat.view(tensor.shape))


def _decompress(compressed: Bytes, *, limit: int) -> bytes:
    zstandard = _zstandard()
    try:
        size = zstandard.frame_content_size(compressed)
        if not 0 <= size <= limit:
            raise InvalidDeltaError(f"announces {size} bytes of changes, {limit} at most can be")
        return zstandard.ZstdDecompressor().decompress(compressed, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidDeltaError(f"is not compressed by zstd, or is damaged: {error}") from error


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError("zstandard", extra="trainer", purpose="a delta of weights") from error
    return zstandard
