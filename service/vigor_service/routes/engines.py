"""``/v1/engines``: which engines compute, and how many there should be."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Depends

from vigor_client.schemas.engines import EngineList, EngineState, ScaleRequest
from vigor_service import errors
from vigor_service.routes.dependencies import BodyDependency, ServingDependency, may_publish, may_score
from vigor_service.routes.openapi import json_body, problems
from vigor_service.serving import Serving

router = APIRouter(
    prefix="/v1/engines",
    tags=["operations"],
    dependencies=[Depends(may_score)],
    responses=problems(errors.UnauthenticatedError, errors.LoadingError, errors.DrainingError),
)


@router.get("", summary="The engines that compute")
async def engines(serving: ServingDependency) -> EngineList:
    return _list(serving)


@router.put(
    "",
    summary="Have another number of engines",
    dependencies=[Depends(may_publish)],
    response_model=EngineList,
    responses=problems(
        errors.ForbiddenError,
        errors.MalformedBodyError,
        errors.InvalidRequestError,
        errors.UnsupportedMediaTypeError,
        errors.PayloadTooLargeError,
        errors.QueueFullError,
        errors.EnginesFixedError,
        errors.DeadlineExceededError,
    ),
    openapi_extra=json_body(ScaleRequest),
)
async def scale(serving: ServingDependency, body: BodyDependency) -> EngineList:
    asked = await body.parse(ScaleRequest, consequence="the engines stay as they are")
    serving.engines.scale(asked.num_engines)
    return _list(serving)


def _list(serving: Serving) -> EngineList:
    return EngineList(engines=[EngineState(**asdict(engine)) for engine in serving.engines.statuses()])
