"""A stand-in for the Kubernetes API with which kubectl creates Jobs: it lists the kinds, and keeps what is created."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = dict[str, Any]

_BATCH = {"groupVersion": "batch/v1", "version": "v1"}
_JOBS = {"name": "jobs", "singularName": "job", "namespaced": True, "kind": "Job", "verbs": ["create", "get", "patch"]}
_KINDS: dict[str, Answer] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "batch", "versions": [_BATCH], "preferredVersion": _BATCH}],
    },
    "/apis/batch/v1": {"kind": "APIResourceList", "groupVersion": "batch/v1", "resources": [_JOBS]},
}


class JobServer(ThreadingHTTPServer):
    """Keeps the Jobs that were created, and gives each the name that it asks for or one made of its `generateName`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: list[Answer] = []

    @property
    def url(self) -> str:
        """Address for `kubectl --server`."""
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, job: Answer) -> Answer:
        """Keep a Job, named as Kubernetes names it."""
        metadata = job["metadata"]
        metadata.setdefault("name", f"{metadata.get('generateName')}{len(self.jobs):05}")
        self.jobs.append(job)
        return job


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in _KINDS:
            self._answer(200, _KINDS[path])
        else:
            self._answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, JobServer)
        self._answer(201, self.server.create(json.loads(body)))

    def _answer(self, status: int, content: Answer) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - as the standard library has it
        """Tests write no log of requests."""


@contextmanager
def job_server() -> Iterator[JobServer]:
    """Serve until the end of the block."""
    with JobServer() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
