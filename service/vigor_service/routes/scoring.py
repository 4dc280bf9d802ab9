"""``POST /v1/score``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from vigor_client.schemas import ScoreRequest, ScoreResponse
from vigor_service import errors
from vigor_service.body import parse_json
from vigor_service.idempotency import HEADER
from vigor_service.openapi import json_body, problems
from vigor_service.routes.dependencies import (
    FOR_SCORERS,
    BodiesDependency,
    RuntimeDependency,
    ServingDependency,
)
from vigor_service.routes.leaving import unless_client_leaves

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
"""What a request for scores may be refused with."""


@router.post(
    "/v1/score",
    summary="Score whole groups under the current weights",
    response_model=ScoreResponse,
    responses=problems(*REFUSALS),
    openapi_extra=json_body(ScoreRequest),
)
async def score(
    request: Request, serving: ServingDependency, runtime: RuntimeDependency, bodies: BodiesDependency
) -> Response:
    async with bodies.receive(request) as body:
        asked = await runtime.preparation.run(parse_json, ScoreRequest, body, consequence="nothing was scored")
    work = serving.answers.once(request.headers.get(HEADER), body, lambda: serving.scoring.score(asked))
    answer = await unless_client_leaves(request, work)
    return Response(answer, media_type="application/json")
