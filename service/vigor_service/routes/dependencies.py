"""FastAPI dependencies of handlers: parts of the application, and the authorization of callers."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.http import HTTPBase

from vigor_service.errors import ClientGoneError
from vigor_service.http.authentication import Keys, Role
from vigor_service.http.request_body import JsonBody
from vigor_service.runtime import Runtime
from vigor_service.serving import Serving

_bearer = HTTPBearer(
    scheme_name="key", description="The score key or the publish key, if the service has keys.", auto_error=False
)
# FastAPI's own HTTPBasic answers 401 without a problem document if it cannot parse the header.
_basic = HTTPBase(
    scheme="basic",
    scheme_name="key_as_password",
    description="The key as the password, with any user name, for callers that take only a URL: http://any:KEY@host.",
    auto_error=False,
)
_Shown = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_ShownInUrl = Annotated[HTTPAuthorizationCredentials | None, Depends(_basic)]


async def may_score(request: Request, shown: _Shown) -> None:
    """Refuse callers without a valid key with 401, before the body is read."""
    _require(request, Role.SCORE, _token(shown))


async def may_score_with_password(request: Request, shown: _Shown, in_url: _ShownInUrl) -> None:
    """Do as ``may_score``, and also accept the key as a password, for callers that cannot set a header."""
    _require(request, Role.SCORE, _token(shown) or _password(in_url))


async def may_publish(request: Request, shown: _Shown) -> None:
    """Refuse callers that may not change the weights with 401 or 403, before the body is read."""
    _require(request, Role.PUBLISH, _token(shown))


def _require(request: Request, role: Role, key: str | None) -> None:
    keys: Keys = request.app.state.keys
    keys.require(role, key)


def _token(shown: HTTPAuthorizationCredentials | None) -> str | None:
    return None if shown is None else shown.credentials


def _password(shown: HTTPAuthorizationCredentials | None) -> str | None:
    """Return the password of HTTP Basic (RFC 7617); the user name is ignored."""
    if shown is None or shown.scheme.lower() != "basic":
        return None
    try:
        return b64decode(shown.credentials, validate=True).partition(b":")[2].decode("latin-1")
    except ValueError:
        return None


async def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


async def _body(request: Request) -> AsyncIterator[JsonBody]:
    body = JsonBody(request, request.app.state.bodies)
    try:
        yield body
    finally:
        body.release()


RuntimeDependency = Annotated[Runtime, Depends(_runtime)]
BodyDependency = Annotated[JsonBody, Depends(_body)]
"""The body's memory stays counted until the response is sent, unless the handler releases it earlier."""


async def _serving(runtime: RuntimeDependency) -> Serving:
    return runtime.serving


ServingDependency = Annotated[Serving, Depends(_serving)]
"""Refuses with 503 while the model loads or the service drains, before the body is read."""


async def counted_disconnects(runtime: RuntimeDependency) -> AsyncIterator[None]:
    """Count requests whose clients disconnect before the response."""
    try:
        yield
    except ClientGoneError:
        runtime.metrics.disconnects.inc()
        raise


FOR_SCORERS = [Depends(may_score_with_password), Depends(counted_disconnects)]
"""Dependencies of routers whose requests need computation."""
