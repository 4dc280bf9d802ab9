"""Progress on the console: a bar for each task, and the remaining time, estimated from the work done so far."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

TRIAL_SHARE = 0.05
"""Share of a task that must be done before the rest is estimated."""


class TimeToGoColumn(ProgressColumn):
    """Shows the remaining time of a task: its ``to_go`` in seconds, else in proportion to its steps."""

    def render(self, task: Task) -> Text:
        """Return the time, or that it is being measured."""
        if task.finished or task.total is None:
            return Text("")
        seconds = task.fields.get("to_go") or seconds_to_go(task.elapsed or 0.0, task.completed, task.total)
        return Text("measuring" if seconds is None else f"{about(seconds)} to go", style="progress.remaining")


def progress(console: Console) -> Progress:
    """Return a display of tasks, each with a bar, its count, its elapsed time and its remaining time."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeToGoColumn(), console=console)


def seconds_to_go(elapsed: float, num_done: float, total: float) -> float | None:
    """Return the time for the rest at the average speed so far; None while too little is done for an estimate."""
    if num_done < max(1.0, TRIAL_SHARE * total):
        return None
    return elapsed / num_done * (total - num_done)


def about(seconds: float) -> str:
    """Return an estimated time as text, rounded so that it does not look more exact than it is."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    return f"about {minutes:.1f} min" if minutes < 10 else f"about {minutes:.0f} min"
