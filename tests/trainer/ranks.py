"""Programs of several processes, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys

from tests.support.preloaded_process import preloaded
from tests.trainer.running import ENVIRONMENT, free_port

LIMIT_SECONDS = 120


def run_ranks(module: str, *arguments: str, num_processes: int) -> list[str]:
    """Run a module as ranks that end well; return the output of each."""
    size = str(num_processes)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=preloaded({**ENVIRONMENT, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        told = [rank.communicate(timeout=LIMIT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * num_processes, told
    return [output for output, _ in told]


def said_by_two(module: str, *arguments: str) -> list[str]:
    """Run a module as two ranks that end well; return the lines of both in which they say which process they are."""
    outputs = run_ranks(module, *arguments, num_processes=2)
    return sorted(line for output in outputs for line in output.splitlines() if line.startswith("process"))
