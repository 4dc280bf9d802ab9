"""The whole loop on this machine: a service scores, a trainer learns and pushes its weights back.

Run by `make demo`, or: python examples/demo.py [--steps N]. Everything it writes lies under demo/.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vigor_client import NotReadyError, VigorClient, VigorError, checkpoint_tensors, digest_of_tensors
from vigor_client.models.embedded import MODEL_NAME, embedded_model_dir
from vigor_trainer.monitoring.records import RECORDS_FILE, RoundRecord, read_records
from vigor_trainer.reports.page import write_report
from vigor_trainer.reports.runs import read_runs

READY_TIMEOUT_SECONDS = 180.0
TRAINING_TIMEOUT_SECONDS = 900.0
STOP_TIMEOUT_SECONDS = 15.0
TICK_SECONDS = 0.25
LOG_TAIL_LINES = 15

# Two processes share the cores: a thread that waits must sleep, not spin.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}
TRAINING = {
    "dataset": "addition",
    "num_generations": "4",
    "per_device_train_batch_size": "16",
    "max_completion_length": "32",
    "learning_rate": "2e-5",
    "lr_scheduler_type": "constant",
    "beta": "0",
    "bf16": "false",
    "activation_checkpointing": "false",
    "save_strategy": "no",
    "use_cpu": "true",
    "seed": "7",
}
COLUMNS = (
    ("step", "step", "d"),
    ("weight_version", "weights", "d"),
    ("mean_scaled_grad_norm", "scaled norm", ".2f"),
    ("mean_length", "length", ".1f"),
    ("reward_length_correlation", "reward × length", "+.2f"),
    ("accuracy", "accuracy", ".0%"),
    ("score_seconds", "score s", ".1f"),
)


class DemoError(Exception):
    """The demo cannot go on; the message says why and where to look."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that the demo started, and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def has_failed(self) -> bool:
        return self.process.poll() not in (None, 0)

    def failure(self) -> DemoError:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        said = "\n".join(f"  {line}" for line in lines)
        return DemoError(f"{self.name} ended with exit code {self.process.returncode}; {self.log} ends with\n{said}")


def main() -> int:
    """Run the demo; 0 only if the service and the saved checkpoint hold the same weights."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)  # so that what was started is stopped
    console = Console()
    try:
        run(arguments, console)
    except (DemoError, VigorError) as error:
        console.print(f"demo failed: {error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has been stopped")
        return 130
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="a checkpoint directory (default: the embedded SmolLM2-135M)")
    parser.add_argument("--directory", type=Path, default=Path("demo"), help="output (default: %(default)s)")
    return parser.parse_args()


def run(arguments: argparse.Namespace, console: Console) -> None:
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint = directory / "checkpoint"
    (checkpoint / RECORDS_FILE).unlink(missing_ok=True)  # of an earlier demo
    model = arguments.model or embedded_model_dir(announce=console.print)
    name = arguments.model.name if arguments.model else MODEL_NAME
    url = f"http://127.0.0.1:{free_port()}"
    console.print(f"{name} learns one-digit addition from its own gradients: {arguments.steps} steps on the CPU")
    with (
        child("vigor-service", service_command(model, url), directory) as service,
        VigorClient(url) as client,
    ):
        with child("vigor-trainer", trainer_command(model, url, checkpoint, arguments.steps), directory) as trainer:
            watch(console, client, service, trainer, checkpoint, arguments.steps)
        records = read_records(checkpoint)
        console.print(table(records))
        served = client.weights().weight_digest
        saved = digest_of_tensors(checkpoint_tensors(checkpoint), client.tensors())
    report = directory / "report.html"
    write_report(
        report, read_runs([checkpoint]), title=f"{name} learns one-digit addition", facts=facts(records, served, saved)
    )
    console.print(f"plots: {report}    logs: {service.log}, {trainer.log}    model: {checkpoint}")
    if served != saved:
        raise DemoError(f"the service serves {served}, but the saved checkpoint is {saved}")
    console.print(f"proof: the service and the saved checkpoint hold the same weights, {served}", style="bold green")


def service_command(model: Path, url: str) -> list[str]:
    port = url.rsplit(":", 1)[1]
    flags = ["--model", str(model), "--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    return [sys.executable, "-m", "vigor_service", *flags]


def trainer_command(model: Path, url: str, checkpoint: Path, steps: int) -> list[str]:
    settings = TRAINING | {
        "reward_url": url,
        "model": str(model),
        "output_dir": str(checkpoint),
        "max_steps": str(steps),
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "vigor_trainer", *flags]


@contextmanager
def child(name: str, command: Sequence[str], directory: Path) -> Iterator[Child]:
    """Start a process in a session of its own, so that Ctrl-C reaches only the demo, and stop it on the way out."""
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    try:
        yield Child(name, process, log)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and end it if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def watch(console: Console, client: VigorClient, service: Child, trainer: Child, checkpoint: Path, steps: int) -> None:
    """Show progress until the trainer has ended.

    Raises:
        DemoError: one of the two failed or took too long.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        starting = progress.add_task("service: loading the model", total=1)
        wait_until_ready(client, service, trainer)
        progress.update(starting, description="service: ready", completed=1)
        training = progress.add_task("trainer: loading the model", total=steps)
        deadline = time.monotonic() + TRAINING_TIMEOUT_SECONDS
        while not has_ended(trainer):
            if service.process.poll() is not None:
                raise service.failure()
            if time.monotonic() > deadline:
                raise DemoError(f"training took longer than {TRAINING_TIMEOUT_SECONDS:g} s; see {trainer.log}")
            if records := read_records(checkpoint):
                description = f"trainer: scored {records[-1].num_completions} completions of step {records[-1].step}"
                progress.update(training, description=description, completed=len(records))
        if trainer.has_failed():
            raise trainer.failure()
        progress.update(training, description="trainer: trained, saved", completed=steps)


def wait_until_ready(client: VigorClient, service: Child, trainer: Child) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while True:
        try:
            return client.wait_until_ready(TICK_SECONDS)
        except NotReadyError as error:
            for process in (service, trainer):
                if process.process.poll() is not None:
                    raise process.failure() from error
            if time.monotonic() > deadline:
                raise DemoError(f"{error}; see {service.log}") from error


def has_ended(trainer: Child) -> bool:
    """Wait for one tick."""
    try:
        trainer.process.wait(TICK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def table(records: Sequence[RoundRecord]) -> Table:
    shown = Table(title="each step, scored by the weights of that step")
    for _, name, _ in COLUMNS:
        shown.add_column(name, justify="right")
    for record in records:
        shown.add_row(*(cell(record, field, form) for field, _, form in COLUMNS))
    return shown


def cell(record: RoundRecord, field: str, form: str) -> str:
    value = getattr(record, field)
    return "–" if value is None else format(value, form)


def facts(records: Sequence[RoundRecord], served: str, saved: str) -> list[tuple[str, str]]:
    rounds = f"{len(records)} × {records[0].num_completions} completions" if records else "none"
    return [("Rounds", rounds), ("The service's weights", served), ("The saved checkpoint's weights", saved)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _raise_keyboard_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
