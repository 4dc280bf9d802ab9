"""Checks before an update is opened: its base must be the served weights, and its size is limited."""

from __future__ import annotations

from vigor_client.schemas.weights import WHOLE_ENCODINGS, UpdateRequest
from vigor_service.errors import PayloadTooLargeError, WeightBaseMismatchError
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.storage.state import StateDirectory
from vigor_service.weights.version import Weights

_HEADER_BYTES_PER_TENSOR = 1024  # a tensor's entry in a safetensors header is shorter than this
_HEADER_BYTES_PER_FILE = 1 << 16
_CHECKPOINT_COPIES = 4  # a checkpoint may have a wider dtype, tied tensors twice, and buffers that the model ignores


def refuse_other_base(request: UpdateRequest, current: CurrentWeights, state: StateDirectory | None) -> None:
    """Raise WeightBaseMismatchError if the base is not the served weights, or if a full update is required."""
    serving = current.weights
    bases = ("version", serving.version, request.base_version), ("digest", serving.digest, request.base_digest)
    for kind, have, want in bases:
        if want not in (None, have):
            raise WeightBaseMismatchError(
                f"the update was made from {kind} {want}, but {kind} {have} is served", have=have, want=want
            )
    if request.encoding in WHOLE_ENCODINGS:
        return
    if current.state == "poisoned":
        raise WeightBaseMismatchError(
            "the served weights are unusable, so there is no base: send a full update",
            have=None,
            want=request.base_version,
        )
    if state is not None:
        state.require_room_to_follow(serving.digest, model_bytes=serving.num_bytes)


def refuse_oversize(request: UpdateRequest, weights: Weights, max_upload_bytes: int | None) -> None:
    """Raise PayloadTooLargeError if more bytes are announced than the limit. Default: what the model can need."""
    num_bytes = sum(file.num_bytes for file in request.files)
    limit = max_upload_bytes or _most_bytes(request, weights)
    if num_bytes > limit:
        raise PayloadTooLargeError(f"the update announces {num_bytes} bytes; the limit is {limit}", limit=limit)


def _most_bytes(request: UpdateRequest, weights: Weights) -> int:
    """Return the maximum size of the files in bytes: all tensors, tied ones under each name, and the headers."""
    num_names = sum(len(info.names) for info in weights.tensors)
    copies = 2 if num_names > len(weights.tensors) else 1
    if request.encoding == "checkpoint":
        copies = _CHECKPOINT_COPIES
    headers_bytes = num_names * _HEADER_BYTES_PER_TENSOR + len(request.files) * _HEADER_BYTES_PER_FILE
    return weights.num_bytes * copies + headers_bytes
