"""Probes, metrics, the model's description, and the engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from math import ceil
from typing import Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from vigor_client.schemas.engines import EngineList, EngineState, ScaleRequest
from vigor_client.schemas.service import Health, ModelInfo, ParameterRules
from vigor_service import errors
from vigor_service.errors import ServiceError
from vigor_service.http.problems import problem_of
from vigor_service.routes.dependencies import (
    BodyDependency,
    RuntimeDependency,
    ServingDependency,
    may_publish,
    may_score,
)
from vigor_service.routes.openapi import json_body, problems
from vigor_service.serving import Serving

router = APIRouter(tags=["operations"])
_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {
        "model": Health,
        "description": "Unavailable; `reason` is the problem code of a score request, `phase` that of loading.",
    }
}


@router.get(
    "/healthz",
    summary="Liveness: 200 unless the process has to be restarted",
    response_model=Health,
    responses=_UNAVAILABLE,
)
async def healthz(runtime: RuntimeDependency) -> Response:
    return _probe(runtime.require_alive)


@router.get(
    "/readyz",
    summary="Readiness: 200 if a score request would be accepted now",
    response_model=Health,
    responses=_UNAVAILABLE,
)
async def readyz(runtime: RuntimeDependency) -> Response:
    return _probe(runtime.require_ready)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(runtime: RuntimeDependency) -> Response:
    return Response(runtime.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/v1/model",
    summary="The model, and how its gradient norms are measured",
    dependencies=[Depends(may_score)],
    responses=problems(errors.UnauthenticatedError, errors.LoadingError, errors.DrainingError),
)
async def model(serving: ServingDependency) -> ModelInfo:
    info = serving.info
    return ModelInfo(
        model=info.model,
        architecture=info.architecture,
        num_parameters=info.num_parameters,
        num_measured_parameters=info.num_measured_parameters,
        dtype=info.dtype,
        device=info.device,
        max_sequence_tokens=info.max_sequence_tokens,
        vocab_size=info.vocab_size,
        tied_embeddings=info.tied_embeddings,
        layout=info.layout,
        norm_probes=info.norm_probes,
        max_batch_tokens=serving.scheduler.max_batch_tokens,
        rules=[
            ParameterRules(rule=rule, num_parameters=len(names), parameters=list(names))
            for rule, names in info.rules.items()
        ],
        lora_scalings=dict(info.lora_scalings),
        product_libraries=dict(info.product_libraries),
    )


@router.get(
    "/v1/engines",
    summary="The engines, and the state of each",
    dependencies=[Depends(may_score)],
    responses=problems(errors.UnauthenticatedError, errors.LoadingError, errors.DrainingError),
)
async def engines(serving: ServingDependency) -> EngineList:
    return _engines(serving)


@router.put(
    "/v1/engines",
    summary="Set the number of engines",
    dependencies=[Depends(may_publish)],
    responses=problems(
        errors.UnauthenticatedError,
        errors.ForbiddenError,
        errors.MalformedBodyError,
        errors.InvalidRequestError,
        errors.UnsupportedMediaTypeError,
        errors.PayloadTooLargeError,
        errors.QueueFullError,
        errors.EnginesFixedError,
        errors.LoadingError,
        errors.DrainingError,
        errors.DeadlineExceededError,
    ),
    openapi_extra=json_body(ScaleRequest),
)
async def scale(serving: ServingDependency, body: BodyDependency) -> EngineList:
    asked = await body.parse(ScaleRequest, consequence="the number of engines is unchanged")
    serving.engines.scale(asked.num_engines)
    return _engines(serving)


def _engines(serving: Serving) -> EngineList:
    return EngineList(engines=[EngineState(**asdict(engine)) for engine in serving.engines.statuses()])


def _probe(require: Callable[[], None]) -> Response:
    """Return the response to a probe. A failed probe is reported with 503, not as a problem document."""
    try:
        require()
    except ServiceError as error:
        health = _unavailable(error)
        headers = {"Retry-After": str(ceil(error.retry_after_seconds or 1))}
        return Response(health.model_dump_json(), 503, headers, "application/json")
    return Response(Health(status="ok").model_dump_json(), media_type="application/json")


def _unavailable(error: ServiceError) -> Health:
    """Return the reason. Details are included only while the service loads, because a probe needs no key."""
    reason = problem_of(error).code
    if not isinstance(error, errors.LoadingError):
        return Health(status="unavailable", reason=reason)
    return Health(status="unavailable", reason=reason, phase=str(error.data["phase"]), detail=error.detail)
