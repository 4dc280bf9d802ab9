"""Progress on the console: a bar for each task, and the time to expect, computed from what is done on this machine."""

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
"""Share of a task whose time tells that of the rest."""


class TimeToGoColumn(ProgressColumn):
    """Shows the time that a task still takes: what its ``to_go`` says in seconds, else in proportion to its steps."""

    def render(self, task: Task) -> Text:
        """Return the time, or that it is being measured."""
        if task.finished or task.total is None:
            return Text("")
        seconds = task.fields.get("to_go") or seconds_to_go(task.elapsed or 0.0, task.completed, task.total)
        return Text("measuring" if seconds is None else f"{about(seconds)} to go", style="progress.remaining")


def progress(console: Console) -> Progress:
    """Return a display of tasks, each with a bar, its count, its time and the time to go."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeToGoColumn(), console=console)


def seconds_to_go(elapsed: float, num_done: float, total: float) -> float | None:
    """Return the time for the rest, were it as fast as what is done; None while too little is done to tell."""
    if num_done < max(1.0, TRIAL_SHARE * total):
        return None
    return elapsed / num_done * (total - num_done)


def about(seconds: float) -> str:
    """Return a time that was estimated, no more exactly than it is known."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    return f"about {minutes:.1f} min" if minutes < 10 else f"about {minutes:.0f} min"
