"""Programs in processes that are forked from one with all libraries loaded: they start in a fraction of a second."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.forked_program import SERVER_VARIABLE, ForkedProgram, connected

_ROOT = Path(__file__).parents[2]
_HANDS_OVER = Path(__file__).parent / "hands_over"
_CALL = """
import importlib, json, sys
module, name, arguments = json.loads(sys.argv[1])
print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))
"""
CALL_SECONDS = 120.0
R = TypeVar("R")
_kept: list[object] = []


def preloaded(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return this environment for a process whose interpreters, and those of its children, have their libraries loaded.

    Each is two processes then: the one that was started hands its program over to a new one, and ends as that one does.
    """
    path = os.pathsep.join((str(_HANDS_OVER), str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])))
    return {**environment, "PYTHONPATH": path, SERVER_VARIABLE: _address()}


@contextmanager
def preloaded_children() -> Iterator[None]:
    """Have the interpreters that are started in this block, by whatever is tested, their libraries loaded."""
    with pytest.MonkeyPatch.context() as changes:
        for name, value in preloaded().items():
            changes.setenv(name, value)
        yield


def in_preloaded_process(function: Callable[..., R], *arguments: object) -> R:
    """Return what a function of a module returns in a process of its own. Its arguments and result are JSON there."""
    given = json.dumps([function.__module__, function.__name__, arguments], default=str)
    command = [sys.executable, "-c", _CALL, given]
    called = subprocess.run(
        command, env=preloaded(), cwd=_ROOT, stdout=subprocess.PIPE, check=True, timeout=CALL_SECONDS
    )
    return json.loads(called.stdout)


class PreloadedProcess:
    """`python` with these arguments, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], *, stderr: Path, environment: Mapping[str, str]) -> None:
        self._code: int | None = None
        self._server = connected(_address())
        program = ForkedProgram(
            arguments=arguments, environment=environment, directory=str(Path.cwd()), numbers=(0, 1, 2)
        )
        with stderr.open("ab") as file, Path(os.devnull).open("rb") as nothing:
            self.pid = program.start(self._server, (nothing.fileno(), 1, file.fileno()))

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float) -> int:
        """Return the exit code when it has ended; raise after the timeout."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("python", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, as kill -9 does."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, seconds: float) -> int | None:
        if self._code is None and select.select([self._server], [], [], seconds)[0]:
            self._code = int(self._server.recv(16))
            self._server.close()
        return self._code


@cache
def _address() -> str:
    """Where the server of this run of the tests listens. It runs as long as one of the run's processes."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex  # one for all processes of the run
    address = Path(tempfile.gettempdir()) / f"vigor-fork-server-{run}"
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            _kept.append(_start(address))
        _kept.append(connected(str(address)))
    return str(address)


def _start(address: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of a process are not in one that it forks
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen()
        command = [sys.executable, "-m", "tests.support.fork_server"]
        return subprocess.Popen(command, stdin=listener.fileno(), cwd=_ROOT, env=environment, start_new_session=True)
