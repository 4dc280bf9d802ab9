"""Additions to FastAPI's OpenAPI description: JSON bodies that are parsed off the event loop, and problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vigor_client.schemas.attribution import AttributionRequest
from vigor_client.schemas.common import IDEMPOTENCY_HEADER
from vigor_client.schemas.engines import ScaleRequest
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE, ErrorLine, GroupLine, LastLine, SampleRequest, ScoreRequest
from vigor_client.schemas.weights import BroadcastRequest, TakeRequest, UpdateRequest
from vigor_service.compat.openrlhf import OpenRLHFRequest
from vigor_service.compat.slime import SlimeRequest
from vigor_service.compat.weight_refresh import PullWeights, UpdateFromDisk
from vigor_service.errors import ServiceError
from vigor_service.http.problems import MEDIA_TYPE, PROBLEMS

_BODIES = (
    ScoreRequest, SampleRequest, AttributionRequest, UpdateRequest, TakeRequest, BroadcastRequest, UpdateFromDisk,
    PullWeights, OpenRLHFRequest, SlimeRequest, ScaleRequest, Problem, GroupLine, LastLine, ErrorLine,
)  # fmt: skip
_REFERENCE = "#/components/schemas/{model}"


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a JSON body."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def idempotency_key(description: str, pattern: str) -> dict[str, Any]:
    """Describe the header that makes a request safe to retry: it is computed once."""
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    header = {"name": IDEMPOTENCY_HEADER, "in": "header", "required": False, "description": description}
    return {"parameters": [{**header, "schema": schema}]}


def raw_body() -> dict[str, Any]:
    """Describe a body of plain bytes."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}


def score_lines() -> dict[int | str, dict[str, Any]]:
    """Describe an answer in lines, and the schema of each line."""
    one_of = [{"$ref": _REFERENCE.format(model=line.__name__)} for line in (GroupLine, LastLine, ErrorLine)]
    return {200: {"content": {LINES_MEDIA_TYPE: {"schema": {"oneOf": one_of}}}}}


def problems(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Describe the errors that an endpoint answers with, with an example for each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in kinds:
        kind = PROBLEMS[error]
        response = responses.setdefault(kind.status, _empty_response(kind.title))
        response["content"][MEDIA_TYPE]["examples"][error.__name__] = {"value": _example(error)}
    return responses


def no_such(what: str) -> dict[int | str, dict[str, Any]]:
    """Describe the 404 of a path that names something."""
    return {404: _empty_response(f"No such {what}")}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the schemas of the bodies that FastAPI does not parse itself."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    _, definitions = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REFERENCE)
    document["components"]["schemas"].update(definitions["$defs"])
    _drop_validation_errors(document)
    return document


def _drop_validation_errors(document: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI adds to each path with a parameter: ours are plain text, so it never happens."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _empty_response(title: str) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model=Problem.__name__)}
    return {"description": title, "content": {MEDIA_TYPE: {"schema": schema, "examples": {}}}}


def _example(error: type[ServiceError]) -> dict[str, Any]:
    kind = PROBLEMS[error]
    summary = (error.__doc__ or kind.title).strip()
    return {
        "type": f"urn:vigor:problem:{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "code": kind.code,
        "detail": summary,
        "errors": [],
    }
