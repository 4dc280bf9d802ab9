"""A minute of fuzzing less, and proof that each promise is held: by a service that breaks it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from tests.fuzz.bodies import UPDATE, VALID
from tests.fuzz.campaign import BrokenPromiseError, Tally, attack, try_one
from tests.fuzz.target import KEY, fuzzed_service
from tests.fuzz.wire import RawRequest, _status
from tests.support.service_process import REPOSITORY, ServiceProcess
from tests.support.waiting import wait_until

SECONDS = 4.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with fuzzed_service(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


def test_what_is_sent_before_it_is_changed_is_right(service: ServiceProcess) -> None:
    """Bodies that are refused for their shape would never reach what lies behind it."""
    opened = service.http.post("/v1/weights/updates", json=VALID["POST", "/v1/weights/updates"])
    assert opened.status_code == 201, opened.text
    update_id = opened.json()["update_id"]
    for (method, path), body in VALID.items():
        if path.endswith("/updates"):
            continue  # one is open
        answer = service.http.request(method, path.replace(UPDATE, update_id), json=body)
        shape = answer.status_code == 422 and '"msg":"is missing"' in answer.text
        assert not shape, (method, path, answer.text)
        assert answer.status_code != 404 or path.startswith(f"/v1/weights/updates/{UPDATE}"), (method, path)


def test_no_request_gets_a_5xx_holds_the_loop_or_takes_memory(service: ServiceProcess) -> None:
    tally = Tally()
    assert attack(service, KEY, seconds=SECONDS, first_seed=0, tally=tally) > 20
    assert tally.statuses[200]
    assert tally.statuses[422]


_BAD = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held = []

    def do_GET(self):
        if self.path == "/busy":
            sum(i for i in range(10_000_000))
        if self.path == "/hungry":
            self.held.append(b"x" * (300 << 20))
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def bad_service() -> Iterator[ServiceProcess]:
    """A server whose main thread answers, and keeps no promise."""
    process = subprocess.Popen([sys.executable, "-c", _BAD], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Connection": "close"}) as http:
            wait_until(lambda: http.get("/").status_code == 200)
            yield cast("ServiceProcess", SimpleNamespace(process=process, http=http, log=Path()))
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


@pytest.mark.parametrize(
    ("path", "promise"), [("/broken", "status 500"), ("/busy", "event loop ran"), ("/hungry", "memory grew")]
)
def test_a_service_that_breaks_a_promise_is_found_out(path: str, promise: str) -> None:
    request: Any = RawRequest(b"GET", path.encode(), ((b"Host", b"127.0.0.1"), (b"Connection", b"close")), b"")
    with bad_service() as service, pytest.raises(BrokenPromiseError, match=promise):
        try_one(service, request, Tally())


@pytest.mark.parametrize(
    ("received", "status"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 Wrong\r\nA: b\r\n\r\n{}", 422),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"", None),
        (b"\x00", None),
    ],
)
def test_the_status_is_that_of_the_answer_itself(received: bytes, status: int | None) -> None:
    assert _status(received) == status
