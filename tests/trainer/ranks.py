"""Programs of several processes: ranks that are started one by one, and as `accelerate launch` starts them."""

from __future__ import annotations

import subprocess
import sys

from examples.processes import free_port
from tests.support.preloaded_process import preloaded
from tests.trainer.running import ENVIRONMENT

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


def launch(module: str, *arguments: str, num_processes: int) -> None:
    """Run a module by `accelerate launch`, as on GPUs, until all its processes have ended well.

    Its launcher of several processes is that for GPUs: on a CPU it starts one, or mpirun.
    """
    settings = {"num_processes": num_processes, "num_machines": 1, "num_cpu_threads_per_process": 1}
    settings |= {"main_process_port": free_port(), "mixed_precision": "no", "dynamo_backend": "no"}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *flags, "-m", module, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
