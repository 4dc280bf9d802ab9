"""A run of several processes: groups are whole although each process holds a part, and a failure ends them all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 120


def test_two_processes_share_a_group_and_its_end() -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.trainer.two_processes"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, *launch],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert sorted(line for line in finished.stdout.splitlines() if line.startswith("process")) == [
        "process 0: ConnectionError: the service is gone, 1 group was not scored",
        "process 0: reward -1.0, requests 1",
        "process 1: MainProcessError: process 1 stops: the main process failed, see its message",
        "process 1: reward 1.0, requests 0",
    ]
