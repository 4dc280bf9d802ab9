"""A model learns from its own gradients, on this machine: ``python -m examples.demo [--steps N]``, or `make demo`.

It makes a small model that adds with mistakes. Two trainers start from it side by side, each with its own service: one
is rewarded by the gradient norm, one at random. Both are measured on sums that neither trains on. All files are written
under demo/.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from examples.demo.expectation import training_seconds_left
from examples.demo.outcome import accuracy_table, examples_table
from examples.processes import Child, FailedProcessError, child, free_url, service_command, trainer_command
from examples.progress import about, progress
from examples.sums.making import NUM_HELD_OUT, NUM_STEPS, TRAINING, make_sums
from vigor_client import NotReadyError, VigorClient, VigorError, checkpoint_tensors, digest_of_tensors
from vigor_trainer.flags import positive
from vigor_trainer.monitoring.records import read_records
from vigor_trainer.reports.page import write_report
from vigor_trainer.reports.runs import Run, read_runs
from vigor_trainer.reports.verdict import verdict

REWARDS = ("vigor", "random")
READY_TIMEOUT_SECONDS = 180.0
TRAINING_TIMEOUT_SECONDS = 900.0
TICK_SECONDS = 0.25


class DemoError(Exception):
    """The demo cannot continue; the message says why and where to look."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A service, the trainer that uses it, and the trainer's directory."""

    reward: str
    client: VigorClient
    service: Child
    trainer: Child
    run: Path

    def is_over(self) -> bool:
        """Return whether training has ended. Raises FailedProcessError if one of the two processes has failed."""
        self.trainer.check(may_end=True)
        if self.trainer.process.poll() is not None:
            return True
        self.service.check()
        return False


def main() -> int:
    """Run the demo and return 0 only if the service and the saved checkpoint hold the same weights."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)  # so that the processes started here are stopped
    disable_progress_bar()  # for files that are written within a second
    console = Console()
    try:
        run(arguments, console)
    except (DemoError, FailedProcessError, VigorError) as error:
        console.print(f"demo failed: {error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has been stopped")
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=positive, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--base-steps", type=positive, default=NUM_STEPS, help="steps before (default: %(default)s)")
    parser.add_argument(
        "--questions", type=positive, default=NUM_HELD_OUT, help="sums that are held out (default: %(default)s)"
    )
    parser.add_argument("--directory", type=Path, default=Path("demo"), help="output (default: %(default)s)")
    return parser.parse_args()


def run(arguments: argparse.Namespace, console: Console) -> None:
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    console.print(
        "Two trainers start from the same small model: one is rewarded by the gradient norm, one at random. "
        "The time to expect is measured on the first steps of each part."
    )
    make_sums(
        directory, "random-slips", num_steps=arguments.base_steps, num_held_out=arguments.questions, console=console
    )
    with ExitStack() as stack:
        lanes = [stack.enter_context(lane(reward, directory, arguments)) for reward in REWARDS]
        watch(console, lanes, arguments.steps, eval_every=_eval_every(arguments.steps))
        served = lanes[0].client.weights().weight_digest
        saved = digest_of_tensors(checkpoint_tensors(lanes[0].run), lanes[0].client.tensors())
    runs = read_runs([lane.run for lane in lanes])
    console.print(accuracy_table(runs))
    for trained in runs:
        if trained.held_out is not None:
            console.print(examples_table(trained.name, trained.held_out))
    found = verdict(runs)
    console.print(found.title, style="bold", highlight=False)
    console.print("\n".join(found.sentences), highlight=False)
    minutes = (time.monotonic() - started) / 60
    weights = {"Weights of the service": served, "Weights of the saved checkpoint": saved}
    path = report(directory, runs, weights, minutes)
    console.print(f"report: {path}    logs and models: {directory}/    {minutes:.1f} min in all")
    if served != saved:
        raise DemoError(f"the service serves {served}, but the saved checkpoint is {saved}")
    console.print(f"proof: the service and the saved checkpoint hold the same weights, {served}", style="bold green")


@contextmanager
def lane(reward: str, directory: Path, arguments: argparse.Namespace) -> Generator[Lane]:
    """Start a service, and a trainer that waits for it."""
    url, run_directory = free_url(), directory / reward
    settings = {
        "config": os.path.relpath(TRAINING),  # the report shows the command
        "reward_url": url,
        "reward": reward,
        "model": str(directory / "model"),
        "dataset": str(directory / "questions.jsonl"),
        "eval_dataset": str(directory / "held-out.jsonl"),
        "eval_limit": str(arguments.questions),
        "eval_every": str(_eval_every(arguments.steps)),
        "max_steps": str(arguments.steps),
        "output_dir": str(run_directory),
    }
    service = service_command(directory / "model", url)
    with (
        child(f"the service of {reward}", service, directory / f"{reward}-service.log") as service,
        VigorClient(url) as client,
        child(f"the trainer of {reward}", trainer_command(settings), directory / f"{reward}-trainer.log") as trainer,
    ):
        yield Lane(reward, client, service, trainer, run_directory)


def watch(console: Console, lanes: Sequence[Lane], num_steps: int, *, eval_every: int) -> None:
    """Show progress and the estimated time until both trainers have ended.

    Raises:
        DemoError: it took too long.
        FailedProcessError: a process has failed.
    """
    with progress(console) as shown:
        starting = shown.add_task("services: loading the model", total=len(lanes))
        for lane in lanes:
            wait_until_ready(lane)
            shown.advance(starting)
        shown.update(starting, description="services: ready")
        tasks = {lane.reward: shown.add_task(f"{lane.reward}: training", total=num_steps) for lane in lanes}
        deadline = time.monotonic() + TRAINING_TIMEOUT_SECONDS
        is_expectation_told = False
        while running := [lane for lane in lanes if not lane.is_over()]:
            if time.monotonic() > deadline:
                raise DemoError(f"training took longer than {TRAINING_TIMEOUT_SECONDS:g} s; see {lanes[0].trainer.log}")
            for lane in lanes:
                to_go = training_seconds_left(lane.run, num_steps=num_steps, eval_every=eval_every)
                shown.update(tasks[lane.reward], completed=len(read_records(lane.run)), to_go=to_go)
            left = [shown.tasks[task].fields["to_go"] for task in tasks.values()]
            if not is_expectation_told and None not in left:
                is_expectation_told = True
                console.print(f"training: {about(max(left))} from here, measured on the first steps of both runs")
            running[0].trainer.ends_within(TICK_SECONDS)


def wait_until_ready(lane: Lane) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            return lane.client.wait_until_ready(TICK_SECONDS)
        except NotReadyError as error:
            lane.service.check()
            lane.trainer.check()
            if time.monotonic() > deadline:
                raise DemoError(f"{error}; see {lane.service.log}") from error


def report(directory: Path, runs: Sequence[Run], weights: Mapping[str, str], minutes: float) -> Path:
    """Write the page of both runs, with the digests that prove that the service has the saved weights."""
    path = directory / "report.html"
    command = f"python -m examples.demo {shlex.join(sys.argv[1:])}".strip()
    facts = [("Command", command), ("Time in all", f"{minutes:.1f} min"), *weights.items()]
    write_report(path, runs, facts=facts)
    return path


def _eval_every(num_steps: int) -> int:
    return max(1, num_steps // 4)


def _raise_keyboard_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
