"""One table from domain errors to HTTP, and the problem documents (RFC 9457) that carry them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vigor_client.schemas import FieldError, Problem
from vigor_service import errors
from vigor_service.errors import ServiceError

MEDIA_TYPE = "application/problem+json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """How one kind of error looks from outside."""

    status: int
    code: str
    title: str


PROBLEMS: Mapping[type[ServiceError], ProblemKind] = {
    errors.MalformedBodyError: ProblemKind(400, "invalid_request", "The body is not JSON"),
    errors.UnauthenticatedError: ProblemKind(401, "unauthenticated", "A key is needed"),
    errors.ForbiddenError: ProblemKind(403, "forbidden", "The key may not do this"),
    errors.UpdateNotFoundError: ProblemKind(404, "not_found", "No such update"),
    errors.UpdateConflictError: ProblemKind(409, "update_state", "The update is in another state"),
    errors.WeightVersionMismatchError: ProblemKind(409, "weight_version_mismatch", "Other weights are served"),
    errors.WeightDigestMismatchError: ProblemKind(409, "weight_digest_mismatch", "Same version, other weights"),
    errors.WeightBaseMismatchError: ProblemKind(409, "weight_base_mismatch", "The update has another base"),
    errors.GroupConflictError: ProblemKind(409, "group_conflict", "Samples of a group contradict each other"),
    errors.PayloadTooLargeError: ProblemKind(413, "payload_too_large", "Too many bytes"),
    errors.SequenceTooLongError: ProblemKind(413, "sequence_too_long", "A sequence is too long for the model"),
    errors.SequenceExceedsMemoryError: ProblemKind(413, "sequence_too_long", "A sequence is too long for the memory"),
    errors.UnsupportedMediaTypeError: ProblemKind(415, "unsupported_media_type", "The body must be JSON"),
    errors.InvalidRequestError: ProblemKind(422, "invalid_request", "The request is wrong"),
    errors.QueueFullError: ProblemKind(429, "queue_full", "The queue is full"),
    errors.ClientGoneError: ProblemKind(499, "client_gone", "The client went away"),
    errors.EngineFailedError: ProblemKind(500, "internal", "The engine failed on this request"),
    errors.UnhealthyError: ProblemKind(503, "unhealthy", "The service cannot compute"),
    errors.LoadingError: ProblemKind(503, "loading", "The model is loading"),
    errors.DrainingError: ProblemKind(503, "draining", "The service is shutting down"),
    errors.WeightsApplyingError: ProblemKind(503, "weights_applying", "Weights are being swapped"),
    errors.WeightsPoisonedError: ProblemKind(503, "weights_poisoned", "The weights are poisoned"),
    errors.DeadlineExceededError: ProblemKind(504, "deadline_exceeded", "The time limit passed"),
    errors.GroupIncompleteError: ProblemKind(504, "group_incomplete", "A group is not whole"),
    errors.StagingFullError: ProblemKind(507, "staging_full", "No disk space for the update"),
}
INTERNAL = ProblemKind(500, "internal", "Internal error")
_PROTOCOL_CODES = {404: "not_found", 405: "method_not_allowed"}
CODES = frozenset({kind.code for kind in PROBLEMS.values()} | {INTERNAL.code} | set(_PROTOCOL_CODES.values()))
"""Every code that a problem may have."""


def problem_of(error: ServiceError) -> Problem:
    """Return the problem document of a domain error."""
    return _problem(PROBLEMS[type(error)], error.detail, error.errors, **error.data)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error that leaves the application a problem document."""
    app.exception_handler(ServiceError)(_handle_service_error)
    app.exception_handler(HTTPException)(_handle_protocol_error)
    app.exception_handler(RequestValidationError)(_handle_parameter_error)
    app.exception_handler(Exception)(_handle_bug)


def _problem(kind: ProblemKind, detail: str, places: list[FieldError], **data: object) -> Problem:
    return Problem.model_validate(
        {
            "type": f"urn:vigor:problem:{kind.code}",
            "title": kind.title,
            "status": kind.status,
            "code": kind.code,
            "detail": detail,
            "errors": places,
            **data,
        }
    )


def _response(request: Request, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    request.app.state.runtime.metrics.observe_problem(problem)
    return Response(problem.model_dump_json(), problem.status, dict(headers or {}), MEDIA_TYPE)


async def _handle_service_error(request: Request, error: ServiceError) -> Response:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(ceil(error.retry_after_seconds))
    if isinstance(error, errors.UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.DeadlineExceededError):
        headers["Connection"] = "close"  # or a body that trickles would be read, and thrown away, to its end
    return _response(request, problem_of(error), headers)


async def _handle_protocol_error(request: Request, error: HTTPException) -> Response:
    code = _PROTOCOL_CODES.get(error.status_code, "invalid_request")
    kind = ProblemKind(error.status_code, code, HTTPStatus(error.status_code).phrase)
    allowed = _allowed_methods(request) if error.status_code == 405 else ""
    headers = {"Allow": allowed} if allowed else error.headers
    return _response(request, _problem(kind, f"{request.method} on this path: {error.detail}", []), headers)


def _allowed_methods(request: Request) -> str:
    """All methods of the path; the router itself names those of its first match only."""
    path = request.url.path
    matching = [endpoint for endpoint in request.app.state.endpoints if endpoint.path_regex.match(path)]
    return ", ".join(sorted({method for endpoint in matching for method in endpoint.methods}))


async def _handle_parameter_error(request: Request, error: RequestValidationError) -> Response:
    places = [FieldError(loc=list(item["loc"]), msg=item["msg"]) for item in error.errors()]
    return _response(request, problem_of(errors.invalid_request(places, consequence="nothing was done")))


async def _handle_bug(request: Request, error: Exception) -> Response:
    request_id: str = request.state.request_id
    # The server logs the traceback itself; this line ties it to the request.
    _logger.error("bug request_id=%s error=%s", request_id, type(error).__name__)
    detail = f"a bug in the service; its log has the details under request id {request_id}"
    # The server closes the connection of a request that raised; nobody is to send another one over it.
    headers = {"X-Request-Id": request_id, "Connection": "close"}
    return _response(request, _problem(INTERNAL, detail, [], request_id=request_id), headers)
