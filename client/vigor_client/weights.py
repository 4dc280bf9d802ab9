"""Publish the weights of a trainer: check them, name them by their digest, and send what the service does not have.

The bytes of a tensor are made twice, once for the checksums and once for the stream, so that neither a second model nor
a file ever exists: the peak is one tensor. Knows nothing about when to publish.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vigor_client.digest import PREFIX, checksum, model_digest, new_hasher, raw_bytes
from vigor_client.endpoints import Endpoints
from vigor_client.errors import PublishError, TensorsRefusedError, VigorError
from vigor_client.safetensors_file import header, split_into_files, tensor_num_bytes
from vigor_client.schemas import CommitResponse, TensorInfo, TensorList, UpdateFile, UpdateRequest
from vigor_client.tensors import read, read_checked, unknown_names, unsendable
from vigor_client.wire import Body

if TYPE_CHECKING:
    import torch

    from vigor_client.digest import Hasher

MAX_FILE_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Publication:
    """What the service scores with after ``publish_weights``.

    When the service had these very weights already, nothing was sent and ``weight_version`` is the service's own.
    """

    weight_version: int
    weight_digest: str
    sent_bytes: int
    num_changed_tensors: int


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One safetensors file that is to be sent; its tensors carry the checksums of the new values."""

    announced: UpdateFile
    tensors: list[TensorInfo]


@dataclass(frozen=True, slots=True)
class Plan:
    """A full update, ready to be sent."""

    weight_digest: str
    files: list[PlannedFile]

    @property
    def num_bytes(self) -> int:
        return sum(file.announced.num_bytes for file in self.files)


def make_plan(tensors: Mapping[str, torch.Tensor], wanted: TensorList, *, max_file_bytes: int = MAX_FILE_BYTES) -> Plan:
    """Check ``tensors`` against what the service wants and compute all checksums, one tensor at a time.

    Raises:
        TensorsRefusedError: they do not fit; every tensor that does not is named.
        MissingDependencyError: xxhash is not installed.
    """
    _refuse(unsendable(wanted))
    faults = unknown_names(tensors, wanted)
    parts = split_into_files(wanted.tensors, max_file_bytes=max_file_bytes)
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    files = [_plan_file(name, tensors, infos, faults) for name, infos in zip(names, parts, strict=True)]
    _refuse(faults)
    return Plan(model_digest(info for file in files for info in file.tensors), files)


def digest_of_tensors(tensors: Mapping[str, torch.Tensor], wanted: TensorList) -> str:
    """The digest that the service's weights would have if they were ``tensors``. Raises as ``make_plan``."""
    return make_plan(tensors, wanted).weight_digest


async def publish(endpoints: Endpoints, tensors: Mapping[str, torch.Tensor], *, weight_version: int) -> Publication:
    """Bring ``tensors`` into service as ``weight_version``, unless the service has them already.

    Raises:
        TensorsRefusedError: they do not fit; nothing was sent.
        PublishError: the service ended with other weights.
        ProblemError, TransportError, UnexpectedAnswerError: the update was dropped; the old weights serve on.
    """
    wanted = await endpoints.tensors()
    plan = await endpoints.wire.compute(lambda: make_plan(tensors, wanted))
    serving = await endpoints.weights()
    if serving.state == "ready" and serving.weight_digest == plan.weight_digest:
        return Publication(serving.weight_version, serving.weight_digest, sent_bytes=0, num_changed_tensors=0)
    served = await _send(endpoints, tensors, plan, weight_version)
    if (served.weight_version, served.weight_digest) != (weight_version, plan.weight_digest):
        raise PublishError(
            f"sent weights {weight_version} ({plan.weight_digest}), but the service committed "
            f"{served.weight_version} ({served.weight_digest})"
        )
    return Publication(weight_version, plan.weight_digest, plan.num_bytes, served.num_changed_tensors)


async def _send(
    endpoints: Endpoints, tensors: Mapping[str, torch.Tensor], plan: Plan, weight_version: int
) -> CommitResponse:
    announced = [file.announced for file in plan.files]
    update = await endpoints.open_update(UpdateRequest(weight_version=weight_version, files=announced))
    try:
        for file in plan.files:
            await endpoints.put_file(update.update_id, file.announced.name, _body(tensors, file))
        return await endpoints.commit(update.update_id, num_bytes=plan.num_bytes)
    except BaseException:  # also Ctrl-C and a cancelled task: nothing half-sent is left behind
        with contextlib.suppress(VigorError):
            await endpoints.abandon(update.update_id)
        raise


def _plan_file(
    name: str, tensors: Mapping[str, torch.Tensor], infos: list[TensorInfo], faults: dict[str, str]
) -> PlannedFile:
    """Hash one file and its tensors in one pass over the bytes; what does not fit is added to ``faults``."""
    first_bytes = header(infos)
    hasher = new_hasher()
    hasher.update(first_bytes)
    described: list[TensorInfo] = []
    for info in infos:
        try:
            described.append(_hash_tensor(tensors, info, hasher))
        except TensorsRefusedError as error:
            faults.update(error.faults)
    num_bytes = len(first_bytes) + sum(map(tensor_num_bytes, infos))
    return PlannedFile(UpdateFile(name=name, num_bytes=num_bytes, checksum=PREFIX + hasher.hexdigest()), described)


def _hash_tensor(tensors: Mapping[str, torch.Tensor], info: TensorInfo, file_hasher: Hasher) -> TensorInfo:
    data = raw_bytes(read_checked(tensors, info))
    file_hasher.update(data)
    return info.model_copy(update={"checksum": checksum(data)})


def _body(tensors: Mapping[str, torch.Tensor], file: PlannedFile) -> Body:
    def chunks() -> Iterator[bytes]:
        yield header(file.tensors)
        for info in file.tensors:
            yield from _tensor_chunks(tensors, info)

    return Body("application/octet-stream", file.announced.num_bytes, chunks)


def _tensor_chunks(tensors: Mapping[str, torch.Tensor], info: TensorInfo) -> Iterator[bytes]:
    data = raw_bytes(read(tensors, info))
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])


def _refuse(faults: Mapping[str, str]) -> None:
    if faults:
        raise TensorsRefusedError(faults)
