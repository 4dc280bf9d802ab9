"""Estimates the remaining time of a run from the steps and evaluations that it has recorded."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from statistics import fmean

from examples.progress import TRIAL_SHARE
from vigor_trainer.monitoring.evaluations import read_evaluations
from vigor_trainer.monitoring.step_times import read_steps


def training_seconds_left(run: Path, *, num_steps: int, eval_every: int) -> float | None:
    """Return the seconds of the remaining steps and evaluations; None before the first steps are measured.

    The first step is left out of the mean if there are others, since it also does work that later steps reuse.
    """
    steps, evaluations = read_steps(run), read_evaluations(run)
    if len(steps) < max(2, TRIAL_SHARE * num_steps) or not evaluations:
        return None
    of_a_step = fmean(step.seconds - step.evaluate_seconds for step in steps[1:])
    of_an_evaluation = fmean(evaluation.seconds for evaluation in evaluations)
    num_evaluations = 1 + ceil(num_steps / eval_every)  # before the first step, during training, and at its end
    return (num_steps - len(steps)) * of_a_step + (num_evaluations - len(evaluations)) * of_an_evaluation
