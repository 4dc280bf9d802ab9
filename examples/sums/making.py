"""Makes a directory with a small model that adds with mistakes, its questions, and those that are held out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from examples.sums.base_model import make_base_model
from examples.sums.works import Worker, split_sums, with_dropped_carries, with_random_slips, write_questions

MISTAKES: Mapping[str, Worker] = {"random-slips": with_random_slips, "dropped-carries": with_dropped_carries}
WIDTH, NUM_LAYERS, NUM_STEPS, NUM_HELD_OUT = 64, 3, 800, 200
"""A model of 200,000 parameters, which takes about a minute."""
TRAINING = Path(__file__).parent / "training.yaml"
"""Settings with which it is trained further; for `vigor-trainer --config`."""


def make_sums(directory: Path, mistakes: str, *, num_steps: int, num_held_out: int, console: Console) -> None:
    """Write `model`, `questions.jsonl` and `held-out.jsonl`, and show how far it is."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, sums in zip(("questions", "held-out"), split_sums(num_held_out), strict=True):
        write_questions(directory / f"{name}.jsonl", sums)
    with progress(console) as shown:
        task = shown.add_task(f"making a small model that adds with mistakes ({mistakes})", total=num_steps)
        make_base_model(
            directory / "model",
            MISTAKES[mistakes],
            num_steps=num_steps,
            width=WIDTH,
            num_layers=NUM_LAYERS,
            on_step=lambda step: shown.update(task, completed=step),
        )


def progress(console: Console) -> Progress:
    """Return a display of tasks, each with a bar, its count and its time."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)
