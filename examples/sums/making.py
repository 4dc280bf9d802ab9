"""Makes a directory with a small model that adds with mistakes, its training questions, and held-out questions."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from time import perf_counter

from rich.console import Console

from examples.progress import TRIAL_SHARE, about, progress
from examples.sums.base_model import make_base_model
from examples.sums.works import Worker, split_sums, with_dropped_carries, with_random_slips, write_questions

MISTAKES: Mapping[str, Worker] = {"random-slips": with_random_slips, "dropped-carries": with_dropped_carries}
WIDTH, NUM_LAYERS, NUM_STEPS, NUM_HELD_OUT = 64, 3, 800, 200
"""Settings of a model with 200,000 parameters."""
TRAINING = Path(__file__).parent / "training.yaml"
"""The file of settings for training the model further with `vigor-trainer --config`."""


def make_sums(directory: Path, mistakes: str, *, num_steps: int, num_held_out: int, console: Console) -> None:
    """Write `model`, `questions.jsonl` and `held-out.jsonl`; show progress with the remaining time."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, sums in zip(("questions", "held-out"), split_sums(num_held_out), strict=True):
        write_questions(directory / f"{name}.jsonl", sums)
    with progress(console) as shown:
        task = shown.add_task(f"making a small model ({mistakes})", total=num_steps)
        started, num_trial_steps = perf_counter(), ceil(TRIAL_SHARE * num_steps) + 1

        def on_step(step: int) -> None:
            nonlocal started
            shown.update(task, completed=step)
            if step == 1:
                started = perf_counter()  # the first step is slower, as it also does work that later ones reuse
            elif step == num_trial_steps:
                seconds = (perf_counter() - started) / (step - 1) * num_steps
                shown.console.print(f"making the model: {about(seconds)}, measured on its first {step} steps")

        make_base_model(
            directory / "model",
            MISTAKES[mistakes],
            num_steps=num_steps,
            width=WIDTH,
            num_layers=NUM_LAYERS,
            on_step=on_step,
        )
