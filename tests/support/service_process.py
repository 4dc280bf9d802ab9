"""The real `vigor-service` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.plain_http import http_client
from tests.support.preloaded_process import PreloadedProcess
from tests.support.waiting import wait_until
from vigor_client import VigorClient

REPOSITORY = Path(__file__).parents[2]
THE_SERVICE = ("-m", "vigor_service")
START_SECONDS = 120.0
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class ServiceProcess:
    """A running service, an HTTP client for it, and its log."""

    process: subprocess.Popen[bytes] | PreloadedProcess
    http: httpx.Client
    log: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return str(self.http.base_url)

    def metrics(self) -> dict[str, float]:
        """Return what it measures, by series."""
        with VigorClient(self.url) as client:
            return client.metrics()

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Kill it, at any moment, as kill -9 does."""
        self.process.kill()
        assert self.process.wait(STOP_SECONDS) == -signal.SIGKILL


@contextmanager
def service_process(
    directory: Path,
    *arguments: str,
    python: Sequence[str] = THE_SERVICE,
    preloaded: bool = True,
    wait_ready: bool = True,
    num_threads: int = 1,
    port: int = 0,
    start_seconds: float = START_SECONDS,
) -> Iterator[ServiceProcess]:
    """Start the service on a free port, or on this one, wait until it is ready, and end it with the block.

    ``python`` is what the interpreter is called with; it takes the service's arguments. A process that is ``preloaded``
    has its libraries loaded when it begins, others start as a user starts them. The log begins anew.
    """
    log = directory / "service.log"
    given = ["--port", str(port), *arguments]
    if "--state-dir" not in arguments:
        given += ["--staging-dir", str(directory / "staging")]
    log.write_bytes(b"")
    process = _start([*python, *given], log, num_threads, preloaded=preloaded)
    try:
        wait_until(lambda: _url(log) is not None or process.poll() is not None, deadline_seconds=start_seconds)
        url = _url(log)
        if url is None:
            raise RuntimeError(f"the service ended before it listened:\n{log.read_text()}")
        with http_client(url, timeout_seconds=60) as http:
            if wait_ready:
                wait_until(lambda: http.get("/readyz").status_code == 200, deadline_seconds=start_seconds)
            yield ServiceProcess(process, http, log)
    finally:
        process.kill()
        process.wait(STOP_SECONDS)


def _start(
    arguments: Sequence[str], log: Path, num_threads: int, *, preloaded: bool
) -> subprocess.Popen[bytes] | PreloadedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    if preloaded:
        return PreloadedProcess(arguments, stderr=log, environment=environment)
    with log.open("ab") as stderr:
        return subprocess.Popen([sys.executable, *arguments], stderr=stderr, env=environment, cwd=REPOSITORY)


def _url(log: Path) -> str | None:
    found = re.search(r"listening.*(http://[^\s\"]+)", log.read_text())
    return found[1] if found else None
