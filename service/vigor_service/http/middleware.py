"""Gives every HTTP request an id, a metric and a log line. Plain ASGI, so that bodies are streamed, not buffered."""

from __future__ import annotations

import logging
import re
import uuid
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vigor_service.observability.logs import current_request_id
from vigor_service.observability.metrics import UNMATCHED_ROUTE, Metrics
from vigor_service.observability.request_record import RequestRecord, begin_record

if TYPE_CHECKING:
    from vigor_service.observability.otel import Tracing

_logger = logging.getLogger("vigor_service.requests")

REQUEST_ID = "X-Request-Id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PROBES = ("/healthz", "/readyz", "/metrics")


class RequestEnvelope:
    """Wraps an ASGI application: sets the request id, and records each request when it ends."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        current_request_id.set(request_id)  # never reset: the server runs each request in its own task
        record = begin_record(is_traced=self._tracing is not None)
        status = 500  # the server's answer if the application raises

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        # HEAD is handled as GET. The server leaves out the body, and everything else is the same.
        routed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(routed, receive, send_with_id)
        finally:
            self._record({**routed, "method": scope["method"]}, status, record)

    def _record(self, scope: Scope, status: int, record: RequestRecord) -> None:
        route, seconds = getattr(scope.get("route"), "path", UNMATCHED_ROUTE), perf_counter() - record.began
        self._metrics.observe_request(route, status, seconds)
        _log(scope, route, status, seconds, record.weight_version if status < 400 else None)
        if self._tracing is not None and route not in _PROBES:
            self._tracing.record(
                record,
                method=scope["method"],
                route=route,
                status=status,
                request_id=scope["state"]["request_id"],
                headers=Headers(scope=scope),
            )


def _log(scope: Scope, route: str, status: int, seconds: float, version: int | None) -> None:
    fields: dict[str, object] = {
        "method": scope["method"],
        "route": route,
        "status": status,
        "seconds": round(seconds, 4),
        "request_id": scope["state"]["request_id"],
    }
    if version is not None:
        fields["weight_version"] = version
    _logger.log(_level(scope["method"], route, status), "request", extra=fields)


def _level(method: str, route: str, status: int) -> int:
    """Return DEBUG for probes and successful reads, which are frequent and change nothing; INFO for the rest."""
    is_read = method in ("GET", "HEAD") and status < 400
    return logging.DEBUG if route in _PROBES or is_read else logging.INFO


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it is safe to log and to send back unchanged, else a new one."""
    sent = Headers(scope=scope).get(REQUEST_ID, "")
    return sent if _SANE_ID.fullmatch(sent) else uuid.uuid4().hex
