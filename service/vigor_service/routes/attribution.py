"""``POST /v1/attribution``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from vigor_client.schemas.attribution import AttributionRequest, AttributionResponse
from vigor_service.http.disconnect import cancel_on_disconnect
from vigor_service.routes.dependencies import FOR_SCORERS, BodyDependency, ServingDependency
from vigor_service.routes.openapi import json_body, problems
from vigor_service.routes.scoring import REFUSALS

router = APIRouter(tags=["scoring"], dependencies=FOR_SCORERS)


@router.post(
    "/v1/attribution",
    summary="Attribute the gradient norm of a completion to its tokens and layers",
    response_model=AttributionResponse,
    responses=problems(*REFUSALS),
    openapi_extra=json_body(AttributionRequest),
)
async def attribution(request: Request, serving: ServingDependency, body: BodyDependency) -> Response:
    attribution_request = await body.parse(AttributionRequest, consequence="nothing was attributed")
    answer = await cancel_on_disconnect(request, serving.attributions.answer(attribution_request))
    return Response(answer, media_type="application/json")
