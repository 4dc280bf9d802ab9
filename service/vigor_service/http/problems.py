"""The table that maps domain errors to HTTP, and the problem documents (RFC 9457) that carry them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vigor_client.schemas.problems import FieldError, Problem
from vigor_service import errors
from vigor_service.errors import ServiceError
from vigor_service.observability.metrics import UNMATCHED_ROUTE, Metrics

MEDIA_TYPE = "application/problem+json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """The HTTP status, code and title of one kind of error."""

    status: int
    code: str
    title: str


PROBLEMS: Mapping[type[ServiceError], ProblemKind] = {
    errors.MalformedHttpError: ProblemKind(400, "invalid_request", "The request cannot be read"),
    errors.MalformedBodyError: ProblemKind(400, "invalid_request", "The body is not JSON"),
    errors.UnauthenticatedError: ProblemKind(401, "unauthenticated", "An API key is required"),
    errors.ForbiddenError: ProblemKind(403, "forbidden", "The key does not allow this"),
    errors.UpdateNotFoundError: ProblemKind(404, "not_found", "Weight update not found"),
    errors.UpdateConflictError: ProblemKind(409, "update_state", "The state of the update does not allow this"),
    errors.EnginesFixedError: ProblemKind(409, "engines_fixed", "The number of engines is fixed"),
    errors.WeightVersionMismatchError: ProblemKind(409, "weight_version_mismatch", "Another weight version is served"),
    errors.WeightDigestMismatchError: ProblemKind(
        409, "weight_digest_mismatch", "The weights of this version have another digest"
    ),
    errors.WeightBaseMismatchError: ProblemKind(409, "weight_base_mismatch", "The update was made from other weights"),
    errors.GroupConflictError: ProblemKind(409, "group_conflict", "Samples of a group contradict each other"),
    errors.PayloadTooLargeError: ProblemKind(413, "payload_too_large", "The request is too large"),
    errors.SequenceTooLongError: ProblemKind(413, "sequence_too_long", "A sequence is too long for the model"),
    errors.SequenceExceedsMemoryError: ProblemKind(413, "sequence_too_long", "A sequence does not fit into memory"),
    errors.UrlTooLongError: ProblemKind(414, "url_too_long", "The URL is too long"),
    errors.UnsupportedMediaTypeError: ProblemKind(415, "unsupported_media_type", "The body must be JSON"),
    errors.WrongHostError: ProblemKind(421, "wrong_host", "The request is for another host"),
    errors.InvalidRequestError: ProblemKind(422, "invalid_request", "Invalid request"),
    errors.QueueFullError: ProblemKind(429, "queue_full", "The queue is full"),
    errors.HeadersTooLargeError: ProblemKind(431, "headers_too_large", "The headers are too large"),
    errors.ClientGoneError: ProblemKind(499, "client_gone", "The client disconnected"),
    errors.EngineFailedError: ProblemKind(500, "internal", "The engine failed on this request"),
    errors.UnhealthyError: ProblemKind(503, "unhealthy", "The service cannot compute"),
    errors.NoEngineError: ProblemKind(503, "no_engine", "No engine is running"),
    errors.LoadingError: ProblemKind(503, "loading", "The model is loading"),
    errors.DrainingError: ProblemKind(503, "draining", "The service is shutting down"),
    errors.WeightsApplyingError: ProblemKind(503, "weights_applying", "Weights are being swapped"),
    errors.WeightsPoisonedError: ProblemKind(503, "weights_poisoned", "The weights are unusable"),
    errors.DeadlineExceededError: ProblemKind(504, "deadline_exceeded", "The time limit was exceeded"),
    errors.GroupIncompleteError: ProblemKind(504, "group_incomplete", "A group is incomplete"),
    errors.StagingFullError: ProblemKind(507, "staging_full", "Not enough disk space for the update"),
}
INTERNAL = ProblemKind(500, "internal", "Internal error")
_PROTOCOL_CODES = {404: "not_found", 405: "method_not_allowed"}
CODES = frozenset({kind.code for kind in PROBLEMS.values()} | {INTERNAL.code} | set(_PROTOCOL_CODES.values()))
"""Every code that a problem may have."""


def problem_of(error: ServiceError) -> Problem:
    """Return the problem document of a domain error."""
    return _problem(PROBLEMS[type(error)], error.detail, error.errors, **error.data)


def refusal_writer(metrics: Metrics) -> Callable[[ServiceError], bytes]:
    """Return a function that turns an error into a complete HTTP response, for input that is not yet a request."""

    def write(error: ServiceError) -> bytes:
        problem, request_id = problem_of(error), uuid.uuid4().hex
        metrics.observe_problem(problem)
        metrics.observe_request(UNMATCHED_ROUTE, problem.status, 0.0)
        _logger.info("refused", extra={"status": problem.status, "request_id": request_id, "detail": problem.detail})
        body = problem.model_dump_json().encode()
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": len(body), "X-Request-Id": request_id}
        lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (headers | _retry_after(error)).items()]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body

    return write


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error that leaves the application a problem document."""
    app.exception_handler(ServiceError)(problem_response)
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


async def problem_response(request: Request, error: ServiceError) -> Response:
    """Return the HTTP response of an error."""
    headers = _retry_after(error)
    if isinstance(error, errors.UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.DeadlineExceededError):
        headers["Connection"] = "close"  # else the server would read a slow body to its end
    return _response(request, problem_of(error), headers)


def _retry_after(error: ServiceError) -> dict[str, str]:
    return {} if error.retry_after_seconds is None else {"Retry-After": str(ceil(error.retry_after_seconds))}


async def _handle_protocol_error(request: Request, error: HTTPException) -> Response:
    allowed = _allowed_methods(request) if error.status_code == 405 else ""
    if allowed and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": allowed})
    code = _PROTOCOL_CODES.get(error.status_code, "invalid_request")
    kind = ProblemKind(error.status_code, code, HTTPStatus(error.status_code).phrase)
    headers = {"Allow": allowed} if allowed else error.headers
    return _response(request, _problem(kind, f"{request.method} on this path: {error.detail}", []), headers)


def _allowed_methods(request: Request) -> str:
    """Return all methods of the path; the router itself names only those of its first match."""
    path = request.scope["path"]
    matching = [endpoint for endpoint in request.app.state.endpoints if endpoint.path_regex.match(path)]
    methods = {method for endpoint in matching for method in endpoint.methods}
    return ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))


async def _handle_parameter_error(request: Request, error: RequestValidationError) -> Response:
    places = [FieldError(loc=list(item["loc"]), msg=item["msg"]) for item in error.errors()]
    return _response(request, problem_of(errors.invalid_request(places, consequence="nothing was done")))


async def _handle_bug(request: Request, error: Exception) -> Response:
    request_id: str = request.state.request_id
    # The server logs the traceback itself; this line ties it to the request.
    _logger.error("bug", extra={"error": type(error).__name__})
    detail = f"a bug in the service; its log has the details under request id {request_id}"
    # The server closes the connection of a request that raised, so the answer says so to proxies and clients.
    headers = {"X-Request-Id": request_id, "Connection": "close"}
    return _response(request, _problem(INTERNAL, detail, [], request_id=request_id), headers)
