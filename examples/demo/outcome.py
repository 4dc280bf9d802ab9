"""What two runs have learnt, measured on the same held-out questions before, during and after training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from vigor_trainer.evaluation.completions import EvaluatedCompletion, read_evaluated
from vigor_trainer.evaluation.during_training import COMPLETIONS_FILE
from vigor_trainer.monitoring.intervals import Estimate, mean

NUM_EXAMPLES = 3

Accuracies = Sequence[float]
"""The share of a question's samples that are right, question after question."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's sampled completions of the held-out questions, by the number of optimizer steps taken."""

    reward: str
    by_step: Mapping[int, Sequence[Sequence[EvaluatedCompletion]]]  # then question after question

    @property
    def steps(self) -> list[int]:
        return sorted(self.by_step)

    def accuracies(self, step: int) -> Accuracies:
        return [fmean(float(each.is_correct or False) for each in question) for question in self.by_step[step]]

    def gains(self) -> Accuracies:
        """Return after minus before, question after question."""
        before, after = self.accuracies(self.steps[0]), self.accuracies(self.steps[-1])
        return [right - left for left, right in zip(before, after, strict=True)]


def outcome_of(reward: str, run: Path) -> Outcome:
    """Read what the evaluations of a run have left in its directory."""
    by_step: dict[int, dict[int, list[EvaluatedCompletion]]] = defaultdict(lambda: defaultdict(list))
    for completion in read_evaluated(run / COMPLETIONS_FILE):
        if completion.decoding == "sampled":
            by_step[completion.step][completion.question].append(completion)
    return Outcome(reward, {step: list(questions.values()) for step, questions in by_step.items()})


def accuracy_table(outcomes: Sequence[Outcome]) -> Table:
    """Return held-out accuracy over steps, a column for each run, and the change from the first to the last."""
    questions = outcomes[0].by_step[0]
    table = Table(title=f"accuracy on {len(questions)} held-out sums, {len(questions[0])} samples each, in %")
    for name in ("step", *(f"rewarded by {outcome.reward}" for outcome in outcomes)):
        table.add_column(name, justify="right")
    for step in outcomes[0].steps:
        table.add_row(str(step), *(percent(_mean(outcome.accuracies(step))) for outcome in outcomes))
    table.add_section()
    table.add_row("change", *(percent(_mean(outcome.gains()), sign="+") for outcome in outcomes))
    return table


def examples_table(outcome: Outcome) -> Table:
    """Return the first sample of the first questions, before and after: not chosen by how they look."""
    table = Table(title=f"the first held-out sums, before and after (rewarded by {outcome.reward})", show_lines=True)
    for name in ("sum", "before", "after"):
        table.add_column(name)
    before, after = outcome.by_step[outcome.steps[0]], outcome.by_step[outcome.steps[-1]]
    for first, last in list(zip(before, after, strict=True))[:NUM_EXAMPLES]:
        table.add_row(str(first[0].prompt).strip(), _shown(first[0]), _shown(last[0]))
    return table


def verdict(trained: Outcome, control: Outcome) -> str:
    """Return what a reward has done and what its control has, with intervals over questions."""
    taught, control_taught = (percent(_mean(outcome.gains()), sign="+") for outcome in (trained, control))
    return (
        f"{_finding(trained, control)}: held-out accuracy changed by {taught} points under {trained.reward} and by "
        f"{control_taught} under {control.reward} (95 % intervals over questions; one seed)"
    )


def _finding(trained: Outcome, control: Outcome) -> str:
    gain = _mean(trained.gains())
    lead = _mean([a - b for a, b in zip(trained.gains(), control.gains(), strict=True)])
    if lead.low <= 0 <= lead.high:
        return f"{trained.reward} cannot be told from {control.reward} here"
    if lead.high < 0:
        return f"{trained.reward} is worse than {control.reward} here"
    if gain.low > 0:
        return f"{trained.reward} has taught, and more than {control.reward}"
    return f"{trained.reward} has not taught, but done less harm than {control.reward}"


def percent(estimate: Estimate, *, sign: str = "") -> str:
    """Return an estimate and its interval in percent."""
    value, low, high = (format(100 * number, f"{sign}z.0f") for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _mean(values: Accuracies) -> Estimate:
    estimate = mean(values)
    if estimate is None:
        raise ValueError("no held-out question was answered")
    return estimate


def _shown(completion: EvaluatedCompletion) -> str:
    return f"{' | '.join(completion.completion.split())}  {'right' if completion.is_correct else 'wrong'}"
