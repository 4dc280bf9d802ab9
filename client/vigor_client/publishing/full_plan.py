"""All tensors of a model as an update, or some of them: checked, hashed, and split into safetensors files.

The bytes of a tensor are produced twice, once for the checksums and once for the stream. So neither a second model nor
a file ever exists: the peak of extra memory is one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from vigor_client.errors import TensorsRefusedError
from vigor_client.publishing.tensor_names import with_service_names
from vigor_client.publishing.tensor_reader import given_names, read, read_checked, unknown_names, unsendable
from vigor_client.schemas.weights import TensorInfo, TensorList, UpdateFile
from vigor_client.weight_format.digest import PREFIX, checksum, model_digest, new_hasher, raw_bytes
from vigor_client.weight_format.safetensors_stream import header, split_into_files, tensor_num_bytes
from vigor_client.weight_format.update_plan import Plan, PlannedFile, refuse

if TYPE_CHECKING:
    import torch

    from vigor_client.weight_format.digest import Hasher

MAX_FILE_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20


def make_plan(tensors: Mapping[str, torch.Tensor], wanted: TensorList, *, max_file_bytes: int = MAX_FILE_BYTES) -> Plan:
    """Check ``tensors`` against what the service wants and compute all checksums, one tensor at a time.

    Raises:
        TensorsRefusedError: tensors do not fit; names each of them.
        MissingDependencyError: xxhash is not installed.
    """
    described, files = _described(tensors, wanted, max_file_bytes)
    return Plan(model_digest(described), files)


def make_partial_plan(
    tensors: Mapping[str, torch.Tensor], wanted: TensorList, *, max_file_bytes: int = MAX_FILE_BYTES
) -> Plan:
    """As ``make_plan`` for a model with these ``tensors`` and all others as served; only differing tensors are sent.

    If none differs, all of ``tensors`` are planned: the service may hold other weights by the time they are sent.
    """
    given = wanted.model_copy(update={"tensors": [info for info in wanted.tensors if given_names(tensors, info)]})
    described, files = _described(tensors, given, max_file_bytes)
    new = {info.name: info for info in described}
    differing = [info for info in given.tensors if new[info.name] != info]
    if 0 < len(differing) < len(given.tensors):
        _, files = _planned(tensors, differing, max_file_bytes)
    return Plan(
        model_digest(new.get(info.name, info) for info in wanted.tensors),
        files,
        encoding="partial",
        base_version=wanted.weight_version,
        base_digest=wanted.weight_digest,
    )


def digest_of_tensors(tensors: Mapping[str, torch.Tensor], wanted: TensorList) -> str:
    """Return the digest that the service's weights would have if they were ``tensors``. Raises as ``make_plan``."""
    described, _ = _described(with_service_names(tensors, wanted), wanted, MAX_FILE_BYTES)
    return model_digest(described)


def _described(
    tensors: Mapping[str, torch.Tensor], wanted: TensorList, max_file_bytes: int
) -> tuple[list[TensorInfo], list[PlannedFile]]:
    """Check and describe all wanted tensors, and plan their files."""
    refuse(unsendable(wanted))
    return _planned(tensors, wanted.tensors, max_file_bytes, unknown_names(tensors, wanted))


def _planned(
    tensors: Mapping[str, torch.Tensor],
    wanted: list[TensorInfo],
    max_file_bytes: int,
    faults: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[TensorInfo], list[PlannedFile]]:
    """Hash tensors file by file, and describe them; refuse those that do not fit, with the ``faults`` found before."""
    described: list[TensorInfo] = []
    found = dict(faults)
    parts = split_into_files(wanted, max_file_bytes=max_file_bytes)
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    files = [_plan_file(name, tensors, infos, described, found) for name, infos in zip(names, parts, strict=True)]
    refuse(found)
    return described, files


def _plan_file(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    infos: list[TensorInfo],
    described: list[TensorInfo],
    faults: dict[str, str],
) -> PlannedFile:
    """Hash one file and its tensors in one pass over the bytes; add to ``described`` and ``faults``."""
    first_bytes = header(infos)
    hasher = new_hasher()
    hasher.update(first_bytes)
    for info in infos:
        try:
            described.append(_hash_tensor(tensors, info, hasher))
        except TensorsRefusedError as error:
            faults.update(error.faults)
    num_bytes = len(first_bytes) + sum(map(tensor_num_bytes, infos))
    announced = UpdateFile(name=name, num_bytes=num_bytes, checksum=PREFIX + hasher.hexdigest())
    return PlannedFile(announced, lambda: _file_chunks(first_bytes, tensors, infos))


def _hash_tensor(tensors: Mapping[str, torch.Tensor], info: TensorInfo, file_hasher: Hasher) -> TensorInfo:
    data = raw_bytes(read_checked(tensors, info))
    file_hasher.update(data)
    return info.model_copy(update={"checksum": checksum(data)})


def _file_chunks(first_bytes: bytes, tensors: Mapping[str, torch.Tensor], infos: list[TensorInfo]) -> Iterator[bytes]:
    yield first_bytes
    for info in infos:
        yield from _tensor_chunks(tensors, info)


def _tensor_chunks(tensors: Mapping[str, torch.Tensor], info: TensorInfo) -> Iterator[bytes]:
    data = raw_bytes(read(tensors, info))
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])
