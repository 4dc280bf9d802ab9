"""Refuses requests for other hosts. Without keys, only requests for localhost are answered. This prevents DNS
rebinding, in which a web page's host name is made to resolve to this machine so that the page can call the service."""

from __future__ import annotations

import re

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from vigor_service.errors import MalformedHttpError, ServiceError, WrongHostError
from vigor_service.http.authentication import is_loopback
from vigor_service.http.problems import problem_response

_HOST = re.compile(r"(?:\[(?P<ip>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]*))(?::\d*)?")
_PROBES = ("/healthz", "/readyz")  # an orchestrator uses any name or address; a web page cannot use the answers


class HostCheck:
    """Wraps an ASGI application: refuses requests without one valid ``Host`` header (HTTP/1.0 may leave it out).

    With ``only_loopback`` it also refuses requests for other hosts than this machine, except probes.
    """

    def __init__(self, app: ASGIApp, *, only_loopback: bool) -> None:
        self._app = app
        self._only_loopback = only_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        response = await problem_response(Request(scope), fault)
        await response(scope, receive, send)

    def _fault(self, scope: Scope) -> ServiceError | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not hosts and scope["http_version"] == "1.0":
            return None
        if len(hosts) != 1:
            return MalformedHttpError(f"the request has {len(hosts)} Host headers: send exactly one")
        if (host := _HOST.fullmatch(hosts[0])) is None:
            return MalformedHttpError("the Host header is not a host name")
        if self._only_loopback and scope["path"] not in _PROBES and not _is_this_machine(host["ip"] or host["name"]):
            return WrongHostError(
                f"without keys the service answers only requests for localhost, not for {hosts[0][:100]!r}: "
                "start it with a key or with --allow-anonymous, or let the proxy send `Host: localhost`"
            )
        return None


def _is_this_machine(host: str) -> bool:
    name = host.lower().removesuffix(".")
    return is_loopback(name) or name.endswith(".localhost")  # always a loopback name (RFC 6761)
