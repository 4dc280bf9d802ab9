"""Processes forked from one with all libraries loaded: they start in a second. The real `vigor-service` is one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.support.preload"])


def in_preloaded_process(task: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what a function of a module returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_FORKING) as pool:
        return pool.submit(task, *args, **kwargs).result()


class PreloadedProcess:
    """A service that is started with these arguments, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], *, stderr: Path, num_threads: int) -> None:
        self._process = _FORKING.Process(target=_run, args=(list(arguments), stderr, num_threads))
        self._process.start()

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Return the exit code when it has ended; raise after the timeout."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("vigor-service", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, as kill -9 does."""
        self.send_signal(signal.SIGKILL)


def _run(arguments: Sequence[str], stderr: Path, num_threads: int) -> None:
    import torch

    import vigor_service.__main__ as program

    with stderr.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    sys.argv = ["vigor-service", *arguments]
    program.main()
