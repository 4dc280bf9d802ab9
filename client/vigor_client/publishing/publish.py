"""Publish the weights of a trainer: check them, name them by their digest, and send what the service does not have.

The bytes of a tensor are made twice, once for the checksums and once for the stream, so that neither a second model nor
a file ever exists: the peak is one tensor. Of a model of which only parts are trained, these parts alone may be given.
With a snapshot of what was published last, which is a second model on the host, only changes are sent. Knows nothing
about when to publish.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

from vigor_client.errors import ProblemError, PublishError, TensorsRefusedError, VigorError, WeightBaseMismatchError
from vigor_client.publishing.checkpoint_plan import make_checkpoint_plan
from vigor_client.publishing.delta_plan import make_delta_plan
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.tensor_names import with_service_names
from vigor_client.publishing.tensor_reader import given_names, read, read_checked, unknown_names, unsendable
from vigor_client.publishing.transports.broadcast import Broadcast
from vigor_client.publishing.transports.shared_directory import SharedDirectory
from vigor_client.schemas.weights import CommitResponse, TensorInfo, TensorList, UpdateEncoding, UpdateFile
from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.checkpoint_files import CheckpointTensors
from vigor_client.weight_format.digest import PREFIX, checksum, model_digest, new_hasher, raw_bytes
from vigor_client.weight_format.safetensors_stream import header, split_into_files, tensor_num_bytes
from vigor_client.weight_format.update_plan import Plan, PlannedFile, refuse

if TYPE_CHECKING:
    import torch

    from vigor_client.weight_format.digest import Hasher

WeightTransport: TypeAlias = SharedDirectory | Broadcast
MAX_FILE_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What the service scores with after ``publish_weights``.

    When the service had these very weights already, nothing was sent and ``weight_version`` is the service's own.
    ``base_digest`` names the weights that parts or changes were made from.
    ``plan_seconds`` went to hashing the tensors and, for changes alone, comparing and compressing them;
    ``verify_seconds`` and ``swap_seconds`` are the service's: it scores on while it verifies.
    """

    weight_version: int
    weight_digest: str
    sent_bytes: int
    num_changed_tensors: int
    encoding: UpdateEncoding | None = "full"  # None: nothing was sent
    base_digest: str | None = None
    plan_seconds: float = field(default=0.0, compare=False)
    send_seconds: float = field(default=0.0, compare=False)
    verify_seconds: float = field(default=0.0, compare=False)
    swap_seconds: float = field(default=0.0, compare=False)

    @property
    def seconds(self) -> float:
        """All of it, from the first hash to the answer that the weights serve."""
        return self.plan_seconds + self.send_seconds + self.verify_seconds + self.swap_seconds


def make_plan(tensors: Mapping[str, torch.Tensor], wanted: TensorList, *, max_file_bytes: int = MAX_FILE_BYTES) -> Plan:
    """Check ``tensors`` against what the service wants and compute all checksums, one tensor at a time.

    Raises:
        TensorsRefusedError: they do not fit; every tensor that does not is named.
        MissingDependencyError: xxhash is not installed.
    """
    described, files = _described(tensors, wanted, max_file_bytes)
    return Plan(model_digest(described), files)


def make_partial_plan(
    tensors: Mapping[str, torch.Tensor], wanted: TensorList, *, max_file_bytes: int = MAX_FILE_BYTES
) -> Plan:
    """As ``make_plan`` of a model that has ``tensors`` and all others as they are served; those that differ are sent.

    Where none differs all of ``tensors`` are planned: the service may hold others by the time it is asked.
    """
    given = wanted.model_copy(update={"tensors": [info for info in wanted.tensors if given_names(tensors, info)]})
    refuse(unsendable(given))
    faults = unknown_names(tensors, wanted)
    described: list[TensorInfo] = []
    files = _plan_files(tensors, given.tensors, described, faults, max_file_bytes)
    refuse(faults)
    new = {info.name: info for info in described}
    differing = [info for info in given.tensors if new[info.name] != info]
    if 0 < len(differing) < len(given.tensors):
        files = _plan_files(tensors, differing, described, faults, max_file_bytes)
    return Plan(
        model_digest(new.get(info.name, info) for info in wanted.tensors),
        files,
        encoding="partial",
        base_version=wanted.weight_version,
        base_digest=wanted.weight_digest,
    )


def digest_of_tensors(tensors: Mapping[str, torch.Tensor], wanted: TensorList) -> str:
    """The digest that the service's weights would have if they were ``tensors``. Raises as ``make_plan``."""
    described, _ = _described(with_service_names(tensors, wanted), wanted, MAX_FILE_BYTES)
    return model_digest(described)


async def publish(
    endpoints: Endpoints,
    tensors: Mapping[str, torch.Tensor],
    *,
    weight_version: int,
    snapshot: WeightSnapshot | None = None,
    partial: bool = False,
    transport: WeightTransport | None = None,
) -> PublishResult:
    """Bring ``tensors`` into service as ``weight_version``, unless the service has them already.

    With a snapshot of what the service holds, changes alone are sent where they are smaller; it is brought up to date.
    A checkpoint's files are sent as they are, for the service to load them as transformers would.
    With ``partial`` the tensors are some of the model's, and all others stay as they are served.
    The bytes go through a shared directory or a broadcast, or else over HTTP; never over HTTP because that failed.

    Raises:
        ValueError: ``partial`` without a tensor, or with a snapshot.
        TensorsRefusedError: they do not fit; nothing was sent.
        SharedDirectoryError, BroadcastError: they cannot go that way.
        PublishError: the service ended with other weights.
        ProblemError, TransportError, UnexpectedAnswerError: the update was dropped; the old weights serve on.
    """
    if partial:
        _check_partial(tensors, snapshot)
    wanted = await endpoints.tensors()
    started = perf_counter()
    if not isinstance(tensors, CheckpointTensors):
        tensors = with_service_names(tensors, wanted)
    plan = await endpoints.wire.compute(lambda: _smallest_plan(tensors, wanted, snapshot, weight_version, partial))
    plan_seconds = perf_counter() - started
    try:
        publication = await _bring(endpoints, plan, weight_version, transport)
    except WeightBaseMismatchError:
        if plan.encoding != "delta":  # parts alone do not make a whole
            raise
        plan = await endpoints.wire.compute(lambda: make_plan(tensors, wanted))
        publication = await _bring(endpoints, plan, weight_version, transport)
    if snapshot is not None:
        await endpoints.wire.compute(lambda: _bring_up_to_date(snapshot, tensors, wanted, plan, publication))
    return replace(publication, base_digest=plan.base_digest, plan_seconds=plan_seconds)


def _check_partial(tensors: Mapping[str, torch.Tensor], snapshot: WeightSnapshot | None) -> None:
    if snapshot is not None:
        raise ValueError("partial and snapshot exclude each other: a snapshot is of the whole model")
    if not tensors:
        raise ValueError("partial needs at least one tensor")


def _smallest_plan(
    tensors: Mapping[str, torch.Tensor],
    wanted: TensorList,
    snapshot: WeightSnapshot | None,
    weight_version: int,
    partial: bool,
) -> Plan:
    if partial:
        return make_partial_plan(tensors, wanted)
    if snapshot is None and isinstance(tensors, CheckpointTensors):
        return make_checkpoint_plan(tensors, wanted)
    if snapshot is not None and snapshot.is_base(wanted):
        plan = make_delta_plan(tensors, wanted, snapshot, weight_version=weight_version)
        if plan is not None:
            return plan
    return make_plan(tensors, wanted)


def _bring_up_to_date(
    snapshot: WeightSnapshot,
    tensors: Mapping[str, torch.Tensor],
    wanted: TensorList,
    plan: Plan,
    publication: PublishResult,
) -> None:
    version, digest = publication.weight_version, publication.weight_digest
    if publication.encoding == "delta" and plan.changes is not None:
        snapshot.take_changes(plan.changes, weight_version=version, weight_digest=digest)
    elif publication.encoding == "full" or snapshot.weight_digest != digest:
        snapshot.take_all(tensors, wanted, weight_version=version, weight_digest=digest)


async def _bring(
    endpoints: Endpoints, plan: Plan, weight_version: int, transport: WeightTransport | None
) -> PublishResult:
    """Send the plan unless the service has these weights; once more if it lost the update: restarted, or expired."""
    try:
        return await _send_if_new(endpoints, plan, weight_version, transport)
    except ProblemError as error:
        if error.code != "not_found":
            raise
    return await _send_if_new(endpoints, plan, weight_version, transport)


async def _send_if_new(
    endpoints: Endpoints, plan: Plan, weight_version: int, transport: WeightTransport | None
) -> PublishResult:
    serving = await endpoints.weights()
    if serving.state == "ready" and serving.weight_digest == plan.weight_digest:
        return PublishResult(serving.weight_version, serving.weight_digest, 0, 0, encoding=None)
    return await _send(endpoints, plan, weight_version, transport)


async def _send(
    endpoints: Endpoints, plan: Plan, weight_version: int, transport: WeightTransport | None
) -> PublishResult:
    started = perf_counter()
    served = await _serve(endpoints, plan, weight_version, transport)
    if served.weight_version != weight_version or plan.weight_digest not in (None, served.weight_digest):
        raise PublishError(
            f"sent weights {weight_version} ({plan.weight_digest}), but the service committed "
            f"{served.weight_version} ({served.weight_digest})"
        )
    return PublishResult(
        weight_version,
        served.weight_digest,
        plan.num_bytes,
        served.num_changed_tensors,
        encoding=plan.encoding,
        send_seconds=perf_counter() - started - served.verify_seconds - served.swap_seconds,
        verify_seconds=served.verify_seconds,
        swap_seconds=served.swap_seconds,
    )


async def _serve(
    endpoints: Endpoints, plan: Plan, weight_version: int, transport: WeightTransport | None
) -> CommitResponse:
    """Open an update, send it and have it served; whatever fails, it does not stay open."""
    update_id = uuid.uuid4().hex
    try:
        # A service that does not take names gives one of its own.
        update_id = (await endpoints.open_update(plan.request(weight_version), update_id)).update_id
        if transport is not None:
            await transport.send(endpoints, update_id, plan)
        else:
            for file in plan.files:
                await endpoints.put_file(update_id, file.announced.name, file.body())
        return await endpoints.commit(update_id, num_bytes=plan.num_bytes)
    except BaseException:  # also Ctrl-C and a cancelled task, and while the answer to its opening is on its way
        with contextlib.suppress(VigorError):
            await endpoints.abandon(update_id)
        raise


def _described(
    tensors: Mapping[str, torch.Tensor], wanted: TensorList, max_file_bytes: int
) -> tuple[list[TensorInfo], list[PlannedFile]]:
    """Check and describe all tensors, and plan their files."""
    refuse(unsendable(wanted))
    faults = unknown_names(tensors, wanted)
    described: list[TensorInfo] = []
    files = _plan_files(tensors, wanted.tensors, described, faults, max_file_bytes)
    refuse(faults)
    return described, files


def _plan_files(
    tensors: Mapping[str, torch.Tensor],
    wanted: list[TensorInfo],
    described: list[TensorInfo],
    faults: dict[str, str],
    max_file_bytes: int,
) -> list[PlannedFile]:
    """Hash tensors file by file, and describe them; what does not fit is a fault."""
    parts = split_into_files(wanted, max_file_bytes=max_file_bytes)
    names = [f"model-{number:05}-of-{len(parts):05}.safetensors" for number in range(1, len(parts) + 1)]
    return [_plan_file(name, tensors, infos, described, faults) for name, infos in zip(names, parts, strict=True)]


def _plan_file(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    infos: list[TensorInfo],
    described: list[TensorInfo],
    faults: dict[str, str],
) -> PlannedFile:
    """Hash one file and its tensors in one pass over the bytes, and describe these; what does not fit is a fault."""
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
