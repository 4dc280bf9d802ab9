"""One run of the study: the real trainer as a process, with a service in another process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.curves import RunCurve, curve_of, read_curve, write_curve
from benchmarks.study.subjects import Subject
from benchmarks.study.variants import Variant
from examples.processes import child, free_url, service_command, trainer_command
from vigor_client import VigorClient
from vigor_trainer.monitoring.completions import COMPLETIONS_FILE
from vigor_trainer.monitoring.records import RECORDS_FILE

READY_SECONDS = 180.0


@dataclass(frozen=True)
class Run:
    """A run's subject, reward variant and seed."""

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
    """Return the model's directory and the file of questions; make them if missing."""
    model, questions = study / subject.name / "model", study / subject.name / "questions.jsonl"
    if not (model / "config.json").exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        subject.prepare(model, questions, subject.num_base_steps)
    return model, questions


def finished(run: Run, study: Path) -> RunCurve | None:
    """Return the curve of a finished run; None if the run is not finished."""
    file = run.curve_file(study)
    return read_curve(file) if file.exists() else None


def do(run: Run, study: Path, service_url: str, *, num_threads: int) -> RunCurve:
    """Train from the base model's weights; the completions stay in the run's directory.

    Raises:
        FailedProcessError: the trainer failed.
    """
    directory = run.directory(study)
    directory.mkdir(parents=True, exist_ok=True)
    for name in (RECORDS_FILE, COMPLETIONS_FILE):
        (directory / name).unlink(missing_ok=True)  # left by an interrupted run
    command = trainer_command(_settings(run, study, service_url), *run.variant.arguments)
    with child(run.title, command, directory / "trainer.log", num_threads=num_threads) as trainer:
        trainer.process.wait()
        trainer.check(may_end=True)
    curve = curve_of(directory, run.variant.reward, run.subject.window)
    write_curve(run.curve_file(study), curve)
    return curve


@contextmanager
def service_of(model: Path, log: Path, *, num_threads: int) -> Generator[str]:
    """Yield the address of a ready service; each run publishes its initial weights to it."""
    url = free_url()
    with child("vigor-service", service_command(model, url), log, num_threads=num_threads), VigorClient(url) as client:
        client.wait_until_ready(READY_SECONDS)
        yield url


def _settings(run: Run, study: Path, service_url: str) -> dict[str, str]:
    model, questions = files_of(run.subject, study)
    return {
        **run.subject.settings,
        "reward_url": service_url,
        "model": str(model),
        "dataset": str(questions),
        "output_dir": str(run.directory(study)),
        "max_steps": str(run.subject.num_steps),
        "seed": str(run.seed),
    }
