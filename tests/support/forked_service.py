"""The real `vigor-service` in a process that is forked from one with all libraries loaded: it starts in a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import torch  # noqa: F401 - what the forked process need not load again
import transformers  # noqa: F401

import vigor_service.__main__ as program
import vigor_service.app
import vigor_service.engine.engine  # noqa: F401
from tests.support.service_process import START_SECONDS, STOP_SECONDS, _url
from tests.support.waiting import wait_until

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class ForkedService:
    """A running service."""

    process: BaseProcess
    url: str

    def kill(self) -> None:
        """Kill it, at any moment, as kill -9 does."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(STOP_SECONDS)
        assert self.process.exitcode == -signal.SIGKILL


@contextmanager
def forked_service(log: Path, *arguments: str) -> Iterator[ForkedService]:
    """Start the service on a free port, wait until it is ready, and end it with the block. The log begins anew."""
    log.write_text("")
    process = _FORKING.Process(target=_run, args=(log, ["--port", "0", *arguments]))
    process.start()
    try:
        wait_until(lambda: _url(log) is not None or not process.is_alive(), deadline_seconds=START_SECONDS)
        url = _url(log)
        assert url is not None, log.read_text()
        with httpx.Client(base_url=url, timeout=START_SECONDS) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200, deadline_seconds=START_SECONDS)
        yield ForkedService(process, url)
    finally:
        process.kill()
        process.join(STOP_SECONDS)


def _run(log: Path, arguments: Sequence[str]) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    sys.argv = ["vigor-service", *arguments]
    program.main()
