"""The results of two runs, as tables for the console: accuracy over steps, completions before and after training."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.reports.held_out import HeldOut
from vigor_trainer.reports.runs import Run
from vigor_trainer.reports.verdict import percent, points


def accuracy_table(runs: Sequence[Run]) -> Table:
    """Return a table of held-out accuracy over steps, a column per reward, with the change and the truncated share."""
    table = Table(title="accuracy on held-out sums")
    for name in ("step", *(f"rewarded by {run.name}" for run in runs)):
        table.add_column(name, justify="right")
    for decoding, first in runs[0].held_out_by_decoding.items():
        outcomes = [run.held_out_by_decoding[decoding] for run in runs]
        table.add_section()
        table.add_row(f"{decoding}, {first.num_samples} of each of {len(first.prompts)} sums", *[""] * len(runs))
        for step in first.steps:
            table.add_row(str(step), *(_told(each.accuracy(step)) for each in outcomes))
        table.add_row("change", *(_change(each.change()) for each in outcomes))
        table.add_row("truncated at the end", *(_told(each.truncated_share(each.last_step)) for each in outcomes))
    return table


def examples_table(reward: str, held_out: HeldOut) -> Table:
    """Return the first sample of the first questions, before and after training; the samples are not selected."""
    before, after = held_out.examples[held_out.first_step], held_out.examples[held_out.last_step]
    title = f"the first {len(before)} held-out sums, before and after (rewarded by {reward})"
    table = Table(title=title, show_lines=True, min_width=len(title))
    for name in ("sum", "before", "after"):
        table.add_column(name)
    for question in sorted(before):
        prompt = Text(str(before[question].prompt).strip())
        table.add_row(prompt, *(_shown(found[question]) for found in (before, after)))
    return table


def _told(estimate: Estimate | None) -> str:
    return "not measured" if estimate is None else percent(estimate)


def _change(change: Estimate | None) -> str:
    return "not measured" if change is None else points(change)


def _shown(completion: EvaluatedCompletion) -> Text:
    marks = ["right" if completion.is_correct else "wrong"]
    if completion.finish_reason == "length":
        marks.append("truncated")
    return Text(f"{completion.completion}\n({', '.join(marks)})")
