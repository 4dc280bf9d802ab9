"""One run of the study: the real trainer as a process, against a service that is a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.curves import RunCurve, curve_of, read_curve, write_curve
from benchmarks.study.subjects import Subject
from benchmarks.study.variants import Variant
from vigor_client import VigorClient
from vigor_trainer.monitoring.completions import COMPLETIONS_FILE
from vigor_trainer.monitoring.records import RECORDS_FILE

READY_SECONDS, STOP_SECONDS = 180.0, 30.0
# Runs share the cores: a thread that waits must sleep.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class StudyError(Exception):
    """A run of the study failed; the message says where to look."""


@dataclass(frozen=True)
class Run:
    """What is trained, by which reward, from which seed."""

    subject: Subject
    variant: Variant
    seed: int

    @property
    def title(self) -> str:
        return f"{self.subject.name}, {self.variant.name}, seed {self.seed}"

    def directory(self, study: Path) -> Path:
        return (
            study / self.subject.name / self.variant.directory_name / f"{self.subject.num_steps}-steps-seed-{self.seed}"
        )

    def curve_file(self, study: Path) -> Path:
        return self.directory(study) / "curve.json"


def files_of(subject: Subject, study: Path) -> tuple[Path, Path]:
    """Return the model's directory and the file of questions, made where they are missing."""
    model, questions = study / subject.name / "model", study / subject.name / "questions.jsonl"
    if not (model / "config.json").exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        subject.prepare(model, questions, subject.num_base_steps)
    return model, questions


def finished(run: Run, study: Path) -> RunCurve | None:
    """Return the curve of a run that was done before; None where it was not."""
    file = run.curve_file(study)
    return read_curve(file) if file.exists() else None


def do(run: Run, study: Path, service_url: str, *, num_threads: int) -> RunCurve:
    """Train from the base model's weights; the completions stay in the run's directory.

    Raises:
        StudyError: the trainer failed.
    """
    directory = run.directory(study)
    directory.mkdir(parents=True, exist_ok=True)
    for name in (RECORDS_FILE, COMPLETIONS_FILE):
        (directory / name).unlink(missing_ok=True)  # of a run that was interrupted
    with (directory / "trainer.log").open("wb") as log:
        command = [sys.executable, "-m", "vigor_trainer", *_flags(run, study, service_url)]
        ended = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=_environment(num_threads), check=False
        )
    if ended.returncode != 0:
        raise StudyError(f"{directory}: the trainer ended with {ended.returncode}; see trainer.log there")
    curve = curve_of(directory, run.variant.reward, run.subject.window)
    write_curve(run.curve_file(study), curve)
    return curve


@contextmanager
def service_of(model: Path, log: Path, port: int, *, num_threads: int) -> Generator[str]:
    """Yield the address of a service that is ready; each run publishes the weights that it begins with."""
    url = f"http://127.0.0.1:{port}"
    flags = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as output:
        command = [sys.executable, "-m", "vigor_service", *flags]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(num_threads))
    try:
        with VigorClient(url) as client:
            client.wait_until_ready(READY_SECONDS)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port of this machine that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _flags(run: Run, study: Path, service_url: str) -> list[str]:
    model, questions = files_of(run.subject, study)
    settings = {
        **run.subject.settings,
        "reward_url": service_url,
        "model": str(model),
        "dataset": str(questions),
        "output_dir": str(run.directory(study)),
        "max_steps": str(run.subject.num_steps),
        "seed": str(run.seed),
    }
    return [*(part for name, value in settings.items() for part in (f"--{name}", value)), *run.variant.arguments]


def _environment(num_threads: int) -> dict[str, str]:
    return os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": str(num_threads)}
