"""``POST /v1/score/sample``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from vigor_client.schemas.scoring import SampleRequest, SampleResponse
from vigor_service import errors
from vigor_service.http.disconnect import cancel_on_disconnect
from vigor_service.routes.dependencies import FOR_SCORERS, BodyDependency, ServingDependency
from vigor_service.routes.openapi import json_body, problems
from vigor_service.routes.scoring import REFUSALS

router = APIRouter(tags=["scoring"], dependencies=FOR_SCORERS)


@router.post(
    "/v1/score/sample",
    summary="Score one completion of a group whose samples arrive in separate requests",
    response_model=SampleResponse,
    responses=problems(*REFUSALS, errors.GroupConflictError, errors.GroupIncompleteError),
    openapi_extra=json_body(SampleRequest),
)
async def score_sample(request: Request, serving: ServingDependency, body: BodyDependency) -> Response:
    sample = await body.parse(SampleRequest, consequence="nothing was scored")
    work = serving.group_assembly.score(sample)
    body.release()  # from here on the group assembly counts the sample
    del body, sample  # frees them during a possibly long wait for the group
    answer = await cancel_on_disconnect(request, work)
    return Response(answer.model_dump_json(), media_type="application/json")
