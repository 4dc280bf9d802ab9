"""The HTTP application: routes, middleware and problem documents around one runtime. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.routing import APIRoute

from vigor_client.schemas.scoring import BEAT_SECONDS
from vigor_service.http.authentication import Keys
from vigor_service.http.host_check import HostCheck
from vigor_service.http.middleware import RequestEnvelope
from vigor_service.http.problems import CODES, install_problem_handlers
from vigor_service.http.request_body import BodyReader
from vigor_service.observability.loading_progress import LoadingProgress
from vigor_service.observability.metrics import Metrics
from vigor_service.routes import (
    attribution,
    compat_rewards,
    compat_weights,
    description,
    inspector,
    operations,
    samples,
    scoring,
    weights,
)
from vigor_service.routes.openapi import describe
from vigor_service.runtime import Loaded, Runtime
from vigor_service.settings import Settings

if TYPE_CHECKING:
    from vigor_service.observability.otel import Tracing

_DESCRIPTION = "Exact gradient norms of the current policy, ranked within groups. Errors are RFC 9457 problems."


def create_app(
    settings: Settings,
    load_model: Callable[[], Loaded],
    *,
    on_load_failure: Callable[[], None] = lambda: None,
    beat_seconds: float = BEAT_SECONDS,
    tracing: Tracing | None = None,
    metrics: Metrics | None = None,
    progress: LoadingProgress | None = None,
) -> FastAPI:
    """Return the application; its runtime is ``app.state.runtime``. The model loads when the application starts.

    ``load_model`` runs on the compute thread. If it raises, ``on_load_failure`` is called and the error is stored in
    ``runtime.load_error``. A streamed response sends an empty line whenever no line was ready for ``beat_seconds``.
    ``tracing`` is closed when the application ends. ``load_model`` reports its phases to ``progress``.
    """
    runtime = Runtime(
        settings,
        load_model,
        on_load_failure=on_load_failure,
        metrics=metrics or Metrics(),
        progress=progress or LoadingProgress(),
    )
    app = FastAPI(
        title="VIGOR scoring service",
        version=version("vigor-rl"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        openapi_url=None,  # FastAPI's own page loads a script from another site
        redirect_slashes=False,
    )
    app.state.runtime = runtime
    app.state.tracing = tracing
    app.state.keys = Keys(score=settings.score_key, publish=settings.publish_key)
    app.state.beat_seconds = beat_seconds
    app.state.bodies = BodyReader(
        max_body_bytes=settings.max_body_bytes,
        max_held_bytes=settings.max_held_bytes,
        timeout_seconds=settings.request_timeout_seconds,
    )
    routers = (
        scoring.router,
        samples.router,
        attribution.router,
        compat_rewards.router,
        weights.router,
        compat_weights.router,
        operations.router,
        inspector.router,
        description.router,
    )
    for router in routers:
        app.include_router(router)
    app.state.endpoints = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_problem_handlers(app)
    app.add_middleware(HostCheck, only_loopback=not (settings.has_key or settings.allow_anonymous))
    app.add_middleware(RequestEnvelope, metrics=runtime.metrics, tracing=tracing)
    app.openapi = cache(partial(describe, app))
    runtime.metrics.expect_routes(endpoint.path for endpoint in app.state.endpoints)
    runtime.metrics.expect_problems(CODES)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    runtime: Runtime = app.state.runtime
    runtime.start()
    try:
        yield
    finally:
        app.state.bodies.close()
        await runtime.stop()
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)
