"""Where the seconds of an optimizer step go: parts that add up to its wall time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.monitoring.step_times import StepRecord
from vigor_trainer.reports.runs import Run

PARTS = (
    "sampling",
    "waiting for published weights",
    "scoring: queue of the service",
    "scoring: computation of the service",
    "scoring: HTTP, JSON and checks",
    "other preparation of the batch",
    "loss, gradient and update",
    "evaluation",
    "other",
)
"""The parts in the order of a step. "other" is the rest of the wall time: data, logging, checkpoints."""


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Means over the recorded steps, in seconds. The parts add up to ``wall``; ``publish`` overlaps with them."""

    num_steps: int
    wall: float
    parts: Mapping[str, float]
    publish: float


def mean_step_seconds(run: Run) -> StepSeconds | None:
    """Return the mean times of the parts of a run's steps; None if the run has not recorded them."""
    if not run.steps:
        return None
    rounds: defaultdict[int, list[RoundRecord]] = defaultdict(list)
    for record in run.rounds:
        rounds[record.step].append(record)
    parts = [parts_of_step(step, rounds[step.step]) for step in run.steps]
    return StepSeconds(
        num_steps=len(run.steps),
        wall=fmean(step.seconds for step in run.steps),
        parts={name: fmean(each[name] for each in parts) for name in PARTS},
        publish=fmean(sum(each.publish_seconds for each in rounds[step.step]) for step in run.steps),
    )


def parts_of_step(step: StepRecord, rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Return the seconds of each of ``PARTS`` in one step with these rounds; they add up to its wall time."""
    generate = sum(each.generate_seconds for each in rounds)
    wait = sum(each.wait_seconds for each in rounds)
    score = sum(each.score_seconds for each in rounds)
    compute = min(score, sum(each.score_compute_seconds or 0.0 for each in rounds))
    queue = min(score - compute, sum(each.score_queue_seconds or 0.0 for each in rounds))
    rest = step.seconds - step.prepare_seconds - step.optimize_seconds - step.evaluate_seconds
    values = (
        generate,
        wait,
        queue,
        compute,
        score - compute - queue,
        step.prepare_seconds - generate - wait - score,
        step.optimize_seconds,
        step.evaluate_seconds,
        rest,
    )
    return dict(zip(PARTS, values, strict=True))
