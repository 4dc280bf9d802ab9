"""A fake service for the command line, on a real socket."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import torch

from tests.client.fake_service import MODEL, FakeService, answer, problem
from tests.client.test_client import DIGEST, scores
from vigor_client.schemas.scoring import GroupScore, ScoreRequest
from vigor_client.schemas.service import Health

DEADLINE_SECONDS = 30.0
WEIGHTS = {"a": torch.ones(2)}
LOADING = Health(
    status="unavailable", reason="loading", phase="reading_model", detail="it is being loaded (3 s so far)"
)


class CommandLineFake(FakeService):
    """Weights as the fake has them, and scores that repeat the groups' ids."""

    def __init__(self) -> None:
        super().__init__(WEIGHTS)
        self.group_counts: list[int] = []
        self.keys: set[str | None] = set()
        self.ready = True
        self.loading_answers = 0  # how many of the next probes say that the model is being loaded
        self.weight_digest = DIGEST
        self.model = MODEL
        self.problems: dict[str, httpx.Response] = {}  # what a request with a group of this id is answered
        self.max_body_bytes = 2**24
        self.too_large = problem(413, "payload_too_large")

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.add(request.headers.get("Authorization"))
        if len(request.content) > self.max_body_bytes:
            self.group_counts.append(-len(ScoreRequest.model_validate_json(request.content).groups))
            return self.too_large
        match request.method, request.url.path:
            case "POST", "/v1/score":
                return self._score(ScoreRequest.model_validate_json(request.content))
            case "GET", "/v1/model":
                return answer(self.model)
            case "GET", "/metrics":
                return httpx.Response(200, text="# TYPE\nvigor_queued_requests 2.0\nvigor_queued_tokens 34.0\n")
            case "GET", "/readyz" if self.loading_answers:
                self.loading_answers -= 1
                return answer(LOADING, status=503)
            case "GET", "/readyz" if not self.ready:
                return answer(Health(status="unavailable", reason="draining"), status=503)
            case _:
                return super().__call__(request)

    def _score(self, request: ScoreRequest) -> httpx.Response:
        self.group_counts.append(len(request.groups))
        bad = [index for index, group in enumerate(request.groups) if group.id and group.id.startswith("bad")]
        if bad:
            places = [{"loc": ["groups", index, "prompt_ids", 0], "msg": "id 9 is out of range"} for index in bad]
            return problem(422, "invalid_request", errors=places)
        for group in request.groups:
            if group.id in self.problems:
                return self.problems[group.id]
        if request.weight_digest not in (None, self.weight_digest):
            return problem(409, "weight_digest_mismatch", have=self.weight_digest, want=request.weight_digest)
        one = scores(sizes=(1,)).groups[0].completions
        groups = [GroupScore(id=group.id, completions=one * len(group.completions)) for group in request.groups]
        return answer(scores(groups=groups, weight_digest=self.weight_digest))


class FakeOnASocket(ThreadingHTTPServer):
    """Serves a fake to other processes."""

    daemon_threads = True

    def __init__(self, fake: FakeService) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                with contextlib.suppress(ConnectionResetError):  # a client that was interrupted
                    super().handle()

            def do_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                url = httpx.URL("http://fake").join(self.path)  # a proxy is asked for a whole URL
                response = fake(httpx.Request(self.command, url, headers=dict(self.headers), content=body))
                self.send_response(response.status_code)
                self.send_header("Content-Length", str(len(response.content)))
                self.end_headers()
                self.wfile.write(response.content)

            do_GET = do_POST = do_PUT = do_DELETE = do_request

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(fake: FakeService) -> Iterator[str]:
    """The fake on a socket; yields its URL."""
    with FakeOnASocket(fake) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def shown_on_a_terminal(*arguments: str) -> str:
    """What a run of the command writes to a terminal on standard error."""
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "vigor_client.cli.main", *arguments]
    with os.fdopen(terminal, "rb", buffering=0) as screen, os.fdopen(end, "wb") as stderr:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr, timeout=DEADLINE_SECONDS, check=False)
        os.set_blocking(screen.fileno(), False)
        shown = screen.read(1 << 16) or b""
    assert done.returncode == 0
    return shown.decode()


def write_groups(path: Path, *ids: str) -> Path:
    lines = [json.dumps({"id": group_id, "prompt": "hi", "completions": ["a", "b"]}) for group_id in ids]
    path.write_text("\n".join(lines) + "\n\n")
    return path
