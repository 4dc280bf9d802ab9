"""A checkpoint as an update: its files are sent as they are, and the service loads them as transformers would.

Only the service, which has the model, knows which of its tensors they become. Knows nothing about torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path

import pydantic

from vigor_client.errors import CheckpointError
from vigor_client.publishing.progress import ProgressReport
from vigor_client.schemas.weights import TensorInfo, TensorList
from vigor_client.weight_format.checkpoint_files import CheckpointTensors
from vigor_client.weight_format.digest import PREFIX, announce, new_hasher
from vigor_client.weight_format.element_types import dtype_of_code
from vigor_client.weight_format.safetensors_stream import TensorEntry
from vigor_client.weight_format.update_plan import Plan, PlannedFile

_CHUNK_BYTES = 1 << 20


def make_checkpoint_plan(checkpoint: CheckpointTensors, wanted: TensorList, progress: ProgressReport) -> Plan:
    """Return a plan with the checksums of a checkpoint's files.

    Its digest is that of ``wanted`` if the tensors are the same, else None.

    Raises:
        CheckpointError: a file cannot be announced under its name.
        MissingDependencyError: xxhash is not installed.
    """
    progress.begin("comparing")
    digest = wanted.weight_digest if _is_served(checkpoint, wanted) else None
    sizes = [path.stat().st_size for path in checkpoint.files]
    progress.begin("hashing", sum(sizes))
    starts = accumulate(sizes, initial=0)
    files = [_planned(path, start, progress) for path, start in zip(checkpoint.files, starts, strict=False)]
    return Plan(digest, files, encoding="checkpoint")


def _planned(path: Path, start_bytes: int, progress: ProgressReport) -> PlannedFile:
    chunks = partial(_file_chunks, path)
    try:
        return PlannedFile(announce(path.name, progress.count("hashing", chunks(), start_bytes)), chunks)
    except pydantic.ValidationError as error:
        raise CheckpointError(f"{path} cannot be sent: {error.errors()[0]['msg']}") from error


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _is_served(checkpoint: CheckpointTensors, wanted: TensorList) -> bool:
    """Return whether checkpoint and service have the same tensors: equal names, dtypes, shapes and bytes."""
    info_of = {name: info for info in wanted.tensors for name in info.names}
    given = {info_of[name].name for name in checkpoint if name in info_of}
    if len(given) != len(wanted.tensors) or not info_of.keys() >= checkpoint.entries.keys():
        return False
    # compare dtypes and shapes of all tensors before reading the bytes of any
    return all(_has_form(entry, info_of[name]) for name, (_, entry) in checkpoint.entries.items()) and all(
        _checksum(path, entry) == info_of[name].checksum for name, (path, entry) in checkpoint.entries.items()
    )


def _has_form(entry: TensorEntry, info: TensorInfo) -> bool:
    return (dtype_of_code(entry.code), entry.shape) == (info.dtype, info.shape)


def _checksum(path: Path, entry: TensorEntry) -> str:
    hasher, left = new_hasher(), entry.num_bytes
    with path.open("rb") as file:
        file.seek(entry.start)
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            hasher.update(chunk)
            left -= len(chunk)
    return PREFIX + hasher.hexdigest()
