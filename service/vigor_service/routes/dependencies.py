"""What handlers ask the application for, and whom they answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from vigor_service.authentication import Keys, Role
from vigor_service.body import BodyReader
from vigor_service.errors import ClientGoneError
from vigor_service.runtime import Runtime, Serving

_bearer = HTTPBearer(
    scheme_name="key", description="The score key, or the publish key, if the service has keys.", auto_error=False
)
_Shown = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def may_score(request: Request, shown: _Shown) -> None:
    """Refuse with 401 who may neither score nor read, before the body is read."""
    _require(request, Role.SCORE, shown)


async def may_publish(request: Request, shown: _Shown) -> None:
    """Refuse with 401 or 403 who may not change the weights, before the body is read."""
    _require(request, Role.PUBLISH, shown)


def _require(request: Request, role: Role, shown: HTTPAuthorizationCredentials | None) -> None:
    keys: Keys = request.app.state.keys
    keys.require(role, None if shown is None else shown.credentials)


async def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


async def _bodies(request: Request) -> BodyReader:
    return request.app.state.bodies


RuntimeDependency = Annotated[Runtime, Depends(_runtime)]
BodiesDependency = Annotated[BodyReader, Depends(_bodies)]


async def _serving(runtime: RuntimeDependency) -> Serving:
    return runtime.serving


ServingDependency = Annotated[Serving, Depends(_serving)]
"""Refuses with 503 while the model loads or the service drains, before the body is read."""


async def counted_disconnects(runtime: RuntimeDependency) -> AsyncIterator[None]:
    """Count a request whose client went away before its answer."""
    try:
        yield
    except ClientGoneError:
        runtime.metrics.disconnects.inc()
        raise


FOR_SCORERS = [Depends(may_score), Depends(counted_disconnects)]
"""Of routers whose calls cost computation."""
