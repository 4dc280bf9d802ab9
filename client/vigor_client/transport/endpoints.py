"""The endpoints of the service, one coroutine each: the implementation that both clients share.

Knows paths and timeouts, and how each call is made safe to repeat; knows nothing about tensors.
"""

from __future__ import annotations

import uuid

import httpx

from vigor_client.errors import NotReadyError, VigorError
from vigor_client.schemas.attribution import AttributionRequest, AttributionResponse
from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.engines import EngineList, ScaleRequest
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE, SampleRequest, SampleResponse, ScoreRequest, ScoreResponse
from vigor_client.schemas.service import Health, ModelInfo
from vigor_client.schemas.weights import (
    BroadcastRequest,
    CommitResponse,
    TakeRequest,
    TensorList,
    UpdateRequest,
    UpdateStatus,
    WeightsInfo,
)
from vigor_client.transport.exchange import Exchange, failure_of, mixed_up, parse, unexpected
from vigor_client.transport.score_stream import OnGroup, ScoreLines, each_once
from vigor_client.transport.wire import Body, HttpCall, Wire

PROBE_TIMEOUT_SECONDS = 5.0
PROBE_PAUSE_SECONDS = 0.25
ABANDON_TIMEOUT_SECONDS = 5.0
# A full update is verified and copied after its last byte: the timeout is extended for work at this speed.
SLOWEST_VERIFICATION_BYTES_PER_SECOND = 100e6

UPDATES = "/v1/weights/updates"
_UNAVAILABLE = 503


class _SampleReader:
    """Checks the answer to a sample against its request within the attempt, so that a wrong answer is retried."""

    def __init__(self, request: SampleRequest) -> None:
        self._request = request

    def take(self, response: httpx.Response, chunk: bytes) -> None:  # noqa: ARG002 - a Reader's
        raise unexpected(response, "lines, although the answer to a sample is a single document")

    def result(self, response: httpx.Response) -> SampleResponse:
        score, request = parse(response, SampleResponse), self._request
        if (score.group, score.index) != (request.group, request.index):
            raise mixed_up(response, f"sample {score.index} of group {score.group!r}")
        if score.reward != request.reward:
            raise unexpected(response, f"the reward {score.reward!r} instead of {request.reward!r}")
        return score


class Endpoints:
    """Calls the service. ``timeout_seconds`` is how long it may stay silent by default."""

    def __init__(self, exchange: Exchange, *, timeout_seconds: float) -> None:
        self._exchange = exchange
        self._timeout_seconds = timeout_seconds

    @property
    def wire(self) -> Wire:
        return self._exchange.wire

    async def score(self, request: ScoreRequest, on_group: OnGroup | None = None) -> ScoreResponse:
        call = HttpCall(
            method="POST",
            path="/v1/score",
            body=Body.json(request.model_dump_json(exclude_none=True)),
            timeout_seconds=self._timeout_seconds + request.wait_seconds,
            # One key for all attempts: an answer that was lost in transit is sent again, even under newer weights.
            headers={"Accept": f"{LINES_MEDIA_TYPE}, application/json", IDEMPOTENCY_HEADER: uuid.uuid4().hex},
        )
        notify = each_once(on_group)
        return await self._exchange.stream(call, lambda: ScoreLines(request, notify))

    async def score_sample(self, request: SampleRequest) -> SampleResponse:
        call = HttpCall(
            method="POST",
            path="/v1/score/sample",
            body=Body.json(request.model_dump_json(exclude_none=True)),
            timeout_seconds=self._timeout_seconds + request.wait_seconds,
        )
        return await self._exchange.stream(call, lambda: _SampleReader(request))

    async def attribute(self, request: AttributionRequest) -> AttributionResponse:
        call = HttpCall(
            method="POST",
            path="/v1/attribution",
            body=Body.json(request.model_dump_json(exclude_none=True)),
            timeout_seconds=self._timeout_seconds + request.wait_seconds,
        )
        return await self._exchange.fetch(call, AttributionResponse)

    async def model(self) -> ModelInfo:
        return await self._exchange.fetch(self._get("/v1/model"), ModelInfo)

    async def engines(self) -> EngineList:
        return await self._exchange.fetch(self._get("/v1/engines"), EngineList)

    async def scale(self, request: ScaleRequest) -> EngineList:
        call = HttpCall(
            method="PUT",
            path="/v1/engines",
            body=Body.json(request.model_dump_json()),
            timeout_seconds=self._timeout_seconds,
        )
        return await self._exchange.fetch(call, EngineList)

    async def weights(self) -> WeightsInfo:
        return await self._exchange.fetch(self._get("/v1/weights"), WeightsInfo)

    async def tensors(self) -> TensorList:
        return await self._exchange.fetch(self._get("/v1/weights/tensors"), TensorList)

    async def health(self) -> Health:
        return await self._probe("/healthz", PROBE_TIMEOUT_SECONDS)

    async def ready(self) -> Health:
        return await self._probe("/readyz", PROBE_TIMEOUT_SECONDS)

    async def wait_until_ready(self, timeout_seconds: float) -> None:
        clock_seconds = self.wire.clock_seconds
        deadline_seconds = clock_seconds() + timeout_seconds
        while (reason := await self._why_not_ready(max(0.1, deadline_seconds - clock_seconds()))) is not None:
            if clock_seconds() + PROBE_PAUSE_SECONDS > deadline_seconds:
                raise NotReadyError(f"the service is not ready after {timeout_seconds:g} s: {reason}")
            await self.wire.sleep(PROBE_PAUSE_SECONDS)

    async def _why_not_ready(self, timeout_seconds: float) -> str | None:
        try:
            answer = await self._probe("/readyz", min(PROBE_TIMEOUT_SECONDS, timeout_seconds))
        except VigorError as error:
            if failure_of(error) is None:
                raise
            return str(error)
        return None if answer.status == "ok" else answer.detail or answer.reason or answer.status

    async def metrics(self) -> dict[str, float]:
        response = await self._exchange.send(self._get("/metrics"))
        samples = (line.rpartition(" ") for line in response.text.splitlines() if line and not line.startswith("#"))
        try:
            return {series: float(value) for series, _, value in samples}
        except ValueError:
            raise unexpected(response, "a body that is not in Prometheus' text format") from None

    async def open_update(self, request: UpdateRequest, name: str) -> UpdateStatus:
        """Open an update under a unique name, so that repeating the request returns the same update."""
        call = HttpCall(
            method="POST",
            path=UPDATES,
            body=Body.json(request.model_dump_json(exclude_none=True)),
            timeout_seconds=self._timeout_seconds,
            headers={IDEMPOTENCY_HEADER: name},
        )
        return await self._exchange.fetch(call, UpdateStatus)

    async def put_file(self, update_id: str, name: str, body: Body) -> None:
        path = f"{UPDATES}/{update_id}/files/{name}"
        call = HttpCall(method="PUT", path=path, body=body, timeout_seconds=self._seconds_for(body.num_bytes))
        await self._exchange.send(call)

    async def take(self, update_id: str, directory: str, *, num_bytes: int) -> None:
        call = HttpCall(
            method="POST",
            path=f"{UPDATES}/{update_id}/take",
            body=Body.json(TakeRequest(directory=directory).model_dump_json()),
            timeout_seconds=self._seconds_for(num_bytes),
        )
        await self._exchange.send(call)

    async def broadcast(self, update_id: str, request: BroadcastRequest, *, num_bytes: int) -> UpdateStatus:
        call = HttpCall(
            method="POST",
            path=f"{UPDATES}/{update_id}/broadcast",
            body=Body.json(request.model_dump_json()),
            timeout_seconds=self._seconds_for(num_bytes),
        )
        return await self._exchange.fetch(call, UpdateStatus)

    async def commit(self, update_id: str, *, num_bytes: int) -> CommitResponse:
        path = f"{UPDATES}/{update_id}/commit"
        call = HttpCall(method="POST", path=path, timeout_seconds=self._seconds_for(num_bytes))
        return await self._exchange.fetch(call, CommitResponse)

    async def abandon(self, update_id: str) -> None:
        call = HttpCall(
            method="DELETE",
            path=f"{UPDATES}/{update_id}",
            timeout_seconds=ABANDON_TIMEOUT_SECONDS,
            repeat_seconds=ABANDON_TIMEOUT_SECONDS,
        )
        await self._exchange.send(call)

    def _seconds_for(self, num_bytes: int) -> float:
        return self._timeout_seconds + num_bytes / SLOWEST_VERIFICATION_BYTES_PER_SECOND

    def _get(self, path: str) -> HttpCall:
        return HttpCall(method="GET", path=path, timeout_seconds=self._timeout_seconds)

    async def _probe(self, path: str, timeout_seconds: float) -> Health:
        call = HttpCall(method="GET", path=path, timeout_seconds=timeout_seconds, repeat_seconds=0.0)
        return await self._exchange.fetch(call, Health, also_status=_UNAVAILABLE)
