"""What handlers ask the application for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from vigor_service.body import BodyReader
from vigor_service.runtime import Runtime, Serving


def _runtime(request: Request) -> Runtime:
    return request.app.state.runtime


def _bodies(request: Request) -> BodyReader:
    return request.app.state.bodies


def _serving(request: Request) -> Serving:
    return _runtime(request).serving


RuntimeDependency = Annotated[Runtime, Depends(_runtime)]
BodiesDependency = Annotated[BodyReader, Depends(_bodies)]
ServingDependency = Annotated[Serving, Depends(_serving)]
"""Refuses with 503 while the model loads or the service drains, before the body is read."""
