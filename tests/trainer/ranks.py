"""Programs of several processes, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys

from tests.support.preloaded_process import preloaded
from tests.trainer.running import ENVIRONMENT, free_port

LIMIT_SECONDS = 120


def said_by_two(module: str, *arguments: str) -> list[str]:
    """Run a module as two ranks that end well; return the lines of both in which they say which process they are."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=preloaded({**ENVIRONMENT, **group, "RANK": rank, "LOCAL_RANK": rank}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        told = [rank.communicate(timeout=LIMIT_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], told
    return sorted(line for output, _ in told for line in output.splitlines() if line.startswith("process"))
