"""Starts `vigor-service` and `vigor-trainer` as processes on this machine, and stops only these processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_SECONDS = 15.0
LOG_TAIL_LINES = 15

# Processes share the cores: a thread that waits must sleep, not spin.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}


class FailedProcessError(Exception):
    """A process ended with an error; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that was started here, and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self, *, may_end: bool = False) -> None:
        """Raise FailedProcessError if the process has ended; if it ``may_end``, only if it ended with an error."""
        code = self.process.poll()
        if code is not None and not (may_end and code == 0):
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            said = "\n".join(f"  {line}" for line in lines)
            raise FailedProcessError(f"{self.name} ended with exit code {code}; {self.log} ends with\n{said}")

    def ends_within(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the process to end; return whether it has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


@contextmanager
def child(name: str, command: Sequence[str], log: Path, *, num_threads: int = 1) -> Generator[Child]:
    """Start a process, and stop it when the block ends."""
    environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(num_threads)}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield Child(name, process, log)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, and kill it if it does not end."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def service_command(model: Path, url: str) -> list[str]:
    """Return the command of a service on the CPU, in float32, that listens where ``url`` says."""
    host, port = url.removeprefix("http://").split(":")
    flags = ["--model", str(model), "--host", host, "--port", port, "--device", "cpu", "--dtype", "float32"]
    return [sys.executable, "-m", "vigor_service", *flags]


def trainer_command(settings: Mapping[str, str], *more: str) -> list[str]:
    """Return the command of a trainer with these flags."""
    return [
        sys.executable,
        "-m",
        "vigor_trainer",
        *(part for name in settings for part in (f"--{name}", settings[name])),
        *more,
    ]


def free_port() -> int:
    """Return a port of this machine that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_url() -> str:
    """Return a URL of this machine with such a port."""
    return f"http://127.0.0.1:{free_port()}"
