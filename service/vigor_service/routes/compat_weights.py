"""Routes that refresh weights with the calls that SGLang and slime send to an inference engine.

Responses have SGLang's form as well: ``{"success", "message"}``, with status 400 if nothing was done.
"""

from __future__ import annotations

from collections.abc import Awaitable

from fastapi import APIRouter, Depends, Response

from vigor_service import errors
from vigor_service.compat.weight_refresh import Outcome, PullWeights, SGLangModelInfo, UpdateFromDisk
from vigor_service.errors import ServiceError
from vigor_service.http.problems import problem_of
from vigor_service.routes.dependencies import BodyDependency, ServingDependency, may_publish, may_score
from vigor_service.routes.openapi import json_body, problems

router = APIRouter(
    tags=["compatible"], dependencies=[Depends(may_score)], responses=problems(errors.UnauthenticatedError)
)
_NOT_LOADED = "nothing was loaded"
_REFUSED = (
    errors.ForbiddenError,
    errors.LoadingError,
    errors.DrainingError,
    errors.DeadlineExceededError,
    errors.StagingFullError,
    errors.WeightsPoisonedError,
)


@router.get(
    "/model_info",
    summary="Model and weights that are served, in SGLang's fields",
    responses=problems(errors.LoadingError, errors.DrainingError),
)
async def model_info(serving: ServingDependency) -> SGLangModelInfo:
    weights, name = serving.current_weights.weights, serving.info.model
    return SGLangModelInfo(
        model_path=name, tokenizer_path=name, weight_version=str(weights.version), weight_digest=weights.digest
    )


@router.post(
    "/update_weights_from_disk",
    summary="Load a checkpoint under --weights-root and serve it",
    dependencies=[Depends(may_publish)],
    response_model=Outcome,
    responses={400: {"model": Outcome}, **problems(*_REFUSED)},
    openapi_extra=json_body(UpdateFromDisk),
)
async def update_weights_from_disk(serving: ServingDependency, body: BodyDependency) -> Response:
    async def update() -> str:
        asked = await body.parse(UpdateFromDisk, consequence=_NOT_LOADED)
        served = await serving.local_files.load(asked.model_path, asked.weight_version)
        return f"version {served.weight_version} is served, digest {served.weight_digest}"

    return await _outcome(update())


@router.post(
    "/pull_weights",
    summary="Load a version that slime published under --weights-root and serve it",
    dependencies=[Depends(may_publish)],
    response_model=Outcome,
    responses={400: {"model": Outcome}, **problems(*_REFUSED)},
    openapi_extra=json_body(PullWeights),
)
async def pull_weights(serving: ServingDependency, body: BodyDependency) -> Response:
    async def pull() -> str:
        asked = await body.parse(PullWeights, consequence=_NOT_LOADED)
        served = await serving.local_files.pull(asked.source_dir, asked.target_version)
        return f"version {served.version} is served, digest {served.digest}"

    return await _outcome(pull())


async def _outcome(work: Awaitable[str]) -> Response:
    """Return a response in SGLang's form. Errors that waiting may cure (5xx) stay problem documents instead."""
    try:
        outcome, status = Outcome(success=True, message=await work), 200
    except ServiceError as error:
        if problem_of(error).status >= 500:
            raise
        places = [f"{'/'.join(map(str, place.loc))} {place.msg}" for place in error.errors]
        outcome, status = Outcome(success=False, message="; ".join([error.detail, *places])), 400
    return Response(outcome.model_dump_json(), status, media_type="application/json")
