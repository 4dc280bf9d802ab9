"""``POST /v1/score``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from vigor_client.schemas import ScoreRequest, ScoreResponse
from vigor_service import errors
from vigor_service.body import parse_json
from vigor_service.errors import ClientGoneError
from vigor_service.openapi import json_body, problems
from vigor_service.routes.dependencies import (
    BodiesDependency,
    RuntimeDependency,
    ServingDependency,
    counted_disconnects,
    may_score,
)

router = APIRouter(
    tags=["scoring"],
    dependencies=[Depends(may_score), Depends(counted_disconnects)],
    responses=problems(errors.UnauthenticatedError),
)
_T = TypeVar("_T")


@router.post(
    "/v1/score",
    summary="Score whole groups under the current weights",
    response_model=ScoreResponse,
    responses=problems(
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
    ),
    openapi_extra=json_body(ScoreRequest),
)
async def score(
    request: Request, serving: ServingDependency, runtime: RuntimeDependency, bodies: BodiesDependency
) -> Response:
    async with bodies.receive(request) as body:
        asked = await runtime.preparation.run(parse_json, ScoreRequest, body, consequence="nothing was scored")
    answer = await _unless_client_leaves(request, serving.scoring.score(asked))
    return Response(answer, media_type="application/json")


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what the work returns; when the connection ends first, cancel it.

    Raises:
        ClientGoneError: the connection ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client went away; its work left the queue")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    """Return when the connection of a request whose body was read has ended."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
