"""The service's application behind a real socket, in a thread of the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.support.fake_scorer import FakeScorer
from tests.support.plain_http import http_client
from tests.support.tiny_models import tiny_tokenizer
from tests.support.waiting import DEADLINE_SECONDS, wait_until
from vigor_client.schemas.scoring import BEAT_SECONDS
from vigor_service.app import create_app
from vigor_service.http.connection_limits import DEFAULT_LIMITS, ConnectionLimits, bounded_protocol
from vigor_service.http.problems import refusal_writer
from vigor_service.http.protocol import Hooks
from vigor_service.observability.loading_progress import LoadingProgress
from vigor_service.observability.metrics import Metrics
from vigor_service.observability.otel import Tracing
from vigor_service.runtime import LoadedModel, Runtime
from vigor_service.settings import Settings


@dataclass(frozen=True)
class LiveService:
    """A running service: talk to it with ``http``, look into it with the rest."""

    http: httpx.Client
    runtime: Runtime
    scorer: FakeScorer

    def score(self, **body: Any) -> httpx.Response:  # noqa: ANN401 - any request, also wrong ones
        return self.http.post("/v1/score", json=body)

    def norms(self) -> list[float]:
        """Scores of a fixed request: they change when the weights do."""
        answer = self.score(groups=[{"prompt_ids": [1, 2], "completions": [[3, 4], [5]]}])
        assert answer.status_code == 200, answer.text
        return [item["grad_norm"] for item in answer.json()["groups"][0]["completions"]]


@contextmanager
def live_service(
    staging_dir: Path | None,
    *,
    load_model: Callable[[], LoadedModel] | None = None,
    wait_ready: bool = True,
    beat_seconds: float = BEAT_SECONDS,
    tracing: Tracing | None = None,
    metrics: Metrics | None = None,
    progress: LoadingProgress | None = None,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    **settings: Any,  # noqa: ANN401 - fields of Settings
) -> Iterator[LiveService]:
    """Run the service with a fake scorer and the tiny tokenizer until the block ends; every score is computed."""
    scorer = FakeScorer()
    app = create_app(
        Settings(staging_dir=staging_dir, **{"score_cache_entries": 0, **settings}),
        load_model or (lambda: LoadedModel(scorer, tiny_tokenizer())),  # pyright: ignore[reportArgumentType] - see __main__
        beat_seconds=beat_seconds,
        tracing=tracing,
        metrics=metrics,
        progress=progress,
    )
    with _server(app, limits) as url, http_client(url, timeout_seconds=30) as http:
        if wait_ready:
            wait_until(lambda: http.get("/readyz").status_code == 200)
        yield LiveService(http, app.state.runtime, scorer)
        scorer.gate.set()


class _Server(uvicorn.Server):
    """Tells when it listens."""

    listens = threading.Event()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextmanager
def _server(app: Any, limits: ConnectionLimits) -> Iterator[str]:  # noqa: ANN401 - an ASGI application
    config = uvicorn.Config(
        app,
        port=0,
        http=bounded_protocol(limits, Hooks(refusal_writer(app.state.runtime.metrics))),
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
    )
    socket = config.bind_socket()
    server = _Server(config)
    server.listens = threading.Event()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, name="server")
    thread.start()
    try:
        assert server.listens.wait(DEADLINE_SECONDS)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        socket.close()
    assert not thread.is_alive()
