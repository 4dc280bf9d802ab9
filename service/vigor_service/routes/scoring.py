"""``POST /v1/score``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE, ScoreRequest, ScoreResponse
from vigor_service import errors
from vigor_service.http.disconnect import cancel_on_disconnect
from vigor_service.http.idempotency import KEY_PATTERN, Put
from vigor_service.http.lines_response import LinesResponse
from vigor_service.http.ndjson import lines_of, with_last_error
from vigor_service.routes.dependencies import FOR_SCORERS, BodyDependency, RuntimeDependency, ServingDependency
from vigor_service.routes.openapi import idempotency_key, json_body, problems, score_lines

router = APIRouter(tags=["scoring"], dependencies=FOR_SCORERS)
REFUSALS = (
    errors.UnauthenticatedError,
    errors.MalformedBodyError,
    errors.InvalidRequestError,
    errors.UnsupportedMediaTypeError,
    errors.PayloadTooLargeError,
    errors.SequenceTooLongError,
    errors.SequenceExceedsMemoryError,
    errors.WeightVersionMismatchError,
    errors.WeightDigestMismatchError,
    errors.QueueFullError,
    errors.EngineFailedError,
    errors.LoadingError,
    errors.DrainingError,
    errors.WeightsPoisonedError,
    errors.DeadlineExceededError,
)
"""Errors with which a request for scores may be refused."""


@router.post(
    "/v1/score",
    summary="Score whole groups under the current weights",
    response_model=ScoreResponse,
    responses=score_lines() | problems(*REFUSALS),
    openapi_extra=json_body(ScoreRequest)
    | idempotency_key("A request that is repeated with the same key and body gets the first answer.", KEY_PATTERN),
)
async def score(
    request: Request, serving: ServingDependency, runtime: RuntimeDependency, body: BodyDependency
) -> Response:
    score_request = await body.parse(ScoreRequest, consequence="nothing was scored")
    key = request.headers.get(IDEMPOTENCY_HEADER)

    async def work(put: Put) -> None:
        await serving.answers.once(key, body.checksum, partial(serving.scoring.score, score_request), put)

    if not _accepts_lines(request):
        whole = serving.scoring.whole(work)
        return Response(await cancel_on_disconnect(request, whole), media_type="application/json")
    lines = lines_of(work, beat_seconds=request.app.state.beat_seconds)
    first = await cancel_on_disconnect(request, anext(lines))  # an error up to here can still set the status
    return LinesResponse(
        with_last_error(first, lines, on_problem=runtime.metrics.observe_problem),
        timeout_seconds=runtime.settings.request_timeout_seconds,
        on_client_gone=runtime.metrics.disconnects.inc,
    )


def _accepts_lines(request: Request) -> bool:
    accepted = ",".join(request.headers.getlist("accept")).lower().split(",")
    return LINES_MEDIA_TYPE in (media_range.partition(";")[0].strip() for media_range in accepted)
