"""Publishes the weights of a trainer: checks them, computes their digest, and sends those that the service lacks.

If only parts of a model are trained, these parts alone may be given. With a snapshot of the last publication, which
takes a second model's memory on the host, only changes are sent. Knows nothing about when to publish.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_client.errors import ProblemError, PublishError, VigorError, WeightBaseMismatchError
from vigor_client.publishing.checkpoint_plan import make_checkpoint_plan
from vigor_client.publishing.delta_plan import make_delta_plan
from vigor_client.publishing.full_plan import make_partial_plan, make_plan
from vigor_client.publishing.progress import OnProgress, ProgressReport
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.tensor_names import with_service_names
from vigor_client.publishing.transports.http import HttpUpload
from vigor_client.publishing.transports.weight_transport import WeightTransport
from vigor_client.schemas.weights import CommitResponse, TensorList, UpdateEncoding
from vigor_client.transport.endpoints import Endpoints
from vigor_client.weight_format.checkpoint_files import CheckpointTensors
from vigor_client.weight_format.update_plan import Plan

if TYPE_CHECKING:
    import torch

HTTP = HttpUpload()


@dataclass(frozen=True, slots=True)
class PublishResult:
    """The weights that the service scores with after ``publish_weights``.

    If the service already had these weights, nothing was sent and ``weight_version`` is the service's own.
    ``base_digest`` is the digest of the weights to which a partial update or a delta was applied.
    ``plan_seconds`` is the time for hashing the tensors and, for a delta, comparing and compressing them.
    ``verify_seconds`` and ``swap_seconds`` are measured by the service, which keeps scoring while it verifies.
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
        """Total time, from the first hash to the answer that the weights serve."""
        return self.plan_seconds + self.send_seconds + self.verify_seconds + self.swap_seconds


async def publish(
    endpoints: Endpoints,
    tensors: Mapping[str, torch.Tensor],
    *,
    weight_version: int,
    snapshot: WeightSnapshot | None = None,
    partial: bool = False,
    transport: WeightTransport = HTTP,
    on_progress: OnProgress | None = None,
) -> PublishResult:
    """Bring ``tensors`` into service as ``weight_version``, unless the service has them already.

    With a snapshot of the service's weights, only changes are sent if they are smaller; it is then updated.
    A checkpoint's files are sent as they are, for the service to load them as transformers would.
    With ``partial`` the tensors are some of the model's, and all others stay as they are.
    The bytes go only by ``transport``: there is no fallback to HTTP if it fails.
    ``on_progress`` is called when a phase begins and while its bytes are counted; an exception ends the publication.

    Raises:
        ValueError: ``partial`` without a tensor, or with a snapshot.
        TensorsRefusedError: the tensors do not fit; nothing was sent.
        SharedDirectoryError, BroadcastError: the transport cannot carry the bytes.
        PublishError: the service ended with other weights.
        ProblemError, TransportError, UnexpectedAnswerError: the update was dropped; the service keeps the old weights.
    """
    if partial:
        _check_partial(tensors, snapshot)
    wanted = await endpoints.tensors()
    started = perf_counter()
    if not isinstance(tensors, CheckpointTensors):
        tensors = with_service_names(tensors, wanted)
    progress = ProgressReport(on_progress)
    plan = await endpoints.wire.compute(
        lambda: _smallest_plan(tensors, wanted, snapshot, weight_version, partial, progress)
    )
    plan_seconds = perf_counter() - started
    sending = _Sending(endpoints, weight_version, transport, progress)
    try:
        publication = await sending.bring(plan)
    except WeightBaseMismatchError:
        if plan.encoding != "delta":  # tensors of a partial update are not a whole model
            raise
        progress.begin("hashing")
        plan = await endpoints.wire.compute(lambda: make_plan(tensors, wanted))
        publication = await sending.bring(plan)
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
    progress: ProgressReport,
) -> Plan:
    if snapshot is None and not partial and isinstance(tensors, CheckpointTensors):
        return make_checkpoint_plan(tensors, wanted, progress)
    if snapshot is not None and snapshot.is_base(wanted):
        progress.begin("comparing")
        plan = make_delta_plan(tensors, wanted, snapshot, weight_version=weight_version)
        if plan is not None:
            return plan
    progress.begin("hashing")
    return make_partial_plan(tensors, wanted) if partial else make_plan(tensors, wanted)


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


@dataclass(frozen=True, slots=True)
class _Sending:
    """The sending of one version of the weights to the service."""

    endpoints: Endpoints
    weight_version: int
    transport: WeightTransport
    progress: ProgressReport

    async def bring(self, plan: Plan) -> PublishResult:
        """Send the plan unless the service has these weights; repeat if it lost the update, as by a restart."""
        try:
            return await self._send_if_new(plan)
        except ProblemError as error:
            if error.code != "not_found":
                raise
        return await self._send_if_new(plan)

    async def _send_if_new(self, plan: Plan) -> PublishResult:
        serving = await self.endpoints.weights()
        if serving.state == "ready" and serving.weight_digest == plan.weight_digest:
            return PublishResult(serving.weight_version, serving.weight_digest, 0, 0, encoding=None)
        return await self._send(plan)

    async def _send(self, plan: Plan) -> PublishResult:
        started = perf_counter()
        served = await self._serve(plan)
        if served.weight_version != self.weight_version or plan.weight_digest not in (None, served.weight_digest):
            raise PublishError(
                f"sent weights {self.weight_version} ({plan.weight_digest}), but the service committed "
                f"{served.weight_version} ({served.weight_digest})"
            )
        return PublishResult(
            self.weight_version,
            served.weight_digest,
            plan.num_bytes,
            served.num_changed_tensors,
            encoding=plan.encoding,
            send_seconds=perf_counter() - started - served.verify_seconds - served.swap_seconds,
            verify_seconds=served.verify_seconds,
            swap_seconds=served.swap_seconds,
        )

    async def _serve(self, plan: Plan) -> CommitResponse:
        """Open an update, send it and commit it. If that fails, drop it."""
        update_id = uuid.uuid4().hex
        try:
            # A service that does not accept names assigns one of its own.
            update_id = (await self.endpoints.open_update(plan.request(self.weight_version), update_id)).update_id
            await self.transport.send(self.endpoints, update_id, self.progress.send(plan))
            self.progress.verify(plan)
            return await self.endpoints.commit(update_id, num_bytes=plan.num_bytes)
        except BaseException:  # Ctrl-C and a cancelled task too, even before the answer to the opening has arrived
            with contextlib.suppress(VigorError):
                await self.endpoints.abandon(update_id)
            raise
