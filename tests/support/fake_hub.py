"""A model hub on this machine: it answers each path of its API with a status, and keeps the tokens that it was sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(frozen=True, slots=True)
class FakeHub:
    """Its address, and what the ``authorization`` header of each request held."""

    url: str
    authorizations: list[str | None]


@contextmanager
def fake_hub(statuses: Mapping[str, int] | None = None) -> Iterator[FakeHub]:
    """Yield a hub that answers a path with its status, and 404 where there is none."""
    authorizations: list[str | None] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, statuses or {}, authorizations)) as server:
        thread = Thread(target=partial(server.serve_forever, poll_interval=0.05))
        thread.start()
        yield FakeHub(f"http://127.0.0.1:{server.server_port}", authorizations)
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, statuses: Mapping[str, int], authorizations: list[str | None], *connection: object) -> None:
        self._statuses = statuses
        self._authorizations = authorizations
        super().__init__(*connection)  # pyright: ignore[reportArgumentType] - as the server gives them

    def do_GET(self) -> None:
        self._authorizations.append(self.headers["authorization"])
        self.send_response(self._statuses.get(self.path, 404))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...
