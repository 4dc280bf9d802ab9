"""Curves of a run's completions over windows of steps: accuracy, AUC of the reward, length, entropy, repetition.

Every prompt of the arithmetic runs is new when it is sampled, so the accuracy of a window is measured on questions that
were not trained on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from vigor_trainer.monitoring.collapse import read_warnings
from vigor_trainer.monitoring.completions import CompletionRecord, read_completions
from vigor_trainer.monitoring.statistics import ordered_pairs, repetition


@dataclass(frozen=True, slots=True)
class Window:
    """Means over the completions of a few steps. ``auc`` is the reward's AUC within groups; None without pairs."""

    first_step: int
    num_completions: int
    accuracy: float
    auc: float | None
    mean_tokens: float
    clipped: float
    mean_entropy: float  # nats
    repetition: float
    distinct: float  # number of different texts in a group, divided by its size


@dataclass(frozen=True, slots=True)
class RunCurve:
    """The windows of a run, in order; the last one shows the end of the run.

    ``warnings`` are the collapse watch's: cause -> step.
    """

    windows: list[Window]
    warnings: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def last(self) -> Window:
        return self.windows[-1]

    def at(self, step: int | None) -> Window:
        """Return the window that contains a step; for None, the last window."""
        begun = [window for window in self.windows if step is None or window.first_step <= step]
        return begun[-1]

    @property
    def first_warning(self) -> int | None:
        """The step of the first warning, at which ``--stop_on_collapse`` would have ended the run."""
        return min(self.warnings.values(), default=None)

    @property
    def gain(self) -> float:
        """Accuracy at the end minus accuracy at the start."""
        return self.last.accuracy - self.windows[0].accuracy


def curve_of(directory: Path, reward: str, window: int) -> RunCurve:
    """Return a summary of a run's `completions.jsonl`."""
    by_window: dict[int, list[CompletionRecord]] = defaultdict(list)
    for record in read_completions(directory):
        by_window[record.step // window].append(record)
    return RunCurve([_window(number * window, by_window[number], reward) for number in sorted(by_window)])


def write_curve(path: Path, curve: RunCurve) -> None:
    """Write a curve atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"windows": [asdict(window) for window in curve.windows]}) + "\n")
    partial.replace(path)


def read_curve(path: Path) -> RunCurve:
    """Return what ``write_curve`` wrote, with the run's warnings from the same directory."""
    warnings = {warning.cause: warning.step for warning in read_warnings(path.parent)}
    return RunCurve([Window(**window) for window in json.loads(path.read_text())["windows"]], warnings)


def _window(first_step: int, records: Sequence[CompletionRecord], reward: str) -> Window:
    groups: dict[tuple[int, int], list[CompletionRecord]] = defaultdict(list)
    for record in records:
        groups[record.step, record.group].append(record)
    return Window(
        first_step=first_step,
        num_completions=len(records),
        accuracy=fmean(float(record.is_correct or False) for record in records),
        auc=_auc(list(groups.values()), reward),
        mean_tokens=fmean(record.num_tokens for record in records),
        clipped=fmean(float(record.finish_reason == "length") for record in records),
        mean_entropy=fmean(record.mean_entropy or 0.0 for record in records),
        repetition=fmean(repetition(record.completion_ids) for record in records),
        distinct=fmean(len({record.completion for record in group}) / len(group) for group in groups.values()),
    )


def _auc(groups: Sequence[Sequence[CompletionRecord]], reward: str) -> float | None:
    pairs = [
        ordered_pairs([record.rewards[reward] for record in group], [bool(record.is_correct) for record in group])
        for group in groups
    ]
    num_pairs = sum(number for _, number in pairs)
    return sum(won for won, _ in pairs) / num_pairs if num_pairs else None
