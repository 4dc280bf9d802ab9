"""The real programs, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.processes import free_port, stop
from tests.support.preloaded_process import preloaded
from vigor_client import VigorClient

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
READY_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class RunningService:
    """A `vigor-service` that is ready."""

    url: str
    process: subprocess.Popen[bytes]
    client: VigorClient


@contextmanager
def running_service(model: Path, log: Path) -> Iterator[RunningService]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with started("vigor_service", *flags, log=log) as process, VigorClient(url) as client:
        client.wait_until_ready(READY_SECONDS)
        yield RunningService(url, process, client)


def trainer_flags(service_url: str, model: Path, output: Path) -> list[str]:
    """A quick run on a tiny model; more flags override."""
    settings = {
        "reward_url": service_url,
        "dataset": "addition",
        "model": str(model),
        "output_dir": str(output),
        "per_device_train_batch_size": "8",
        "num_generations": "4",
        "max_completion_length": "8",
        "learning_rate": "1e-2",
        "lr_scheduler_type": "constant",
        "beta": "0",
        "bf16": "false",
        "use_cpu": "true",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@contextmanager
def started(
    module: str, *flags: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module until it ends or the block does. Its libraries are loaded, unless another environment is given."""
    with log.open("wb") as output:
        command = [sys.executable, "-m", module, *flags]
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment or preloaded(ENVIRONMENT)
        )
    try:
        yield process
    finally:
        stop(process)


def wait_for(condition: Callable[[], object], *, process: subprocess.Popen[bytes], seconds: float, log: Path) -> None:
    """Wait until the condition holds; a process that ends before, or a deadline that passes, fails the test."""
    deadline = time.monotonic() + seconds
    while not condition():
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, f"not within {seconds:g} s; {log.read_text(errors='replace')[-2000:]}"
        else:
            raise AssertionError(f"ended with {process.returncode}; {log.read_text(errors='replace')[-2000:]}")
