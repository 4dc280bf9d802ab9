"""Builds tables from the curves of all seeds: the final result of each reward, its course, and their interpretation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev

from benchmarks.report import Cell, Table
from benchmarks.study.curves import RunCurve, Window
from benchmarks.study.subjects import Subject

CONTROL = "random"
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of seeds n -> the 97.5 % quantile of Student's t with n - 1 degrees of freedom."""
Runs = Mapping[int, RunCurve]
"""Seed -> run."""
Curves = Mapping[str, Runs]
"""Name of a variant -> its runs."""

_ENDS = {
    "variant": ("reward", "{}"),
    "num_seeds": ("seeds", "{}"),
    "first": ("accuracy at the start", "{:.3f}"),
    "best": ("highest during the run", "{:.3f}"),
    "at_first_warning": ("at the first warning", "{:.3f}"),
    "at_entropy_warning": ("at the entropy warning", "{:.3f}"),
    "last": ("at the end", "{:.3f}"),
    "interval": ("95 % over seeds", "{}"),
    "against_start": ("minus the start, 95 %", "{}"),
    "against_control": ("minus random, 95 %", "{}"),
}
_SIGNS = {
    "variant": ("reward", "{}"),
    "first_auc": ("AUC at the start", "{:.2f}"),
    "last_auc": ("AUC at the end", "{:.2f}"),
    "first_clipped": ("cut off at the start", "{:.1%}"),
    "mean_tokens": ("tokens at the end", "{:.1f}"),
    "mean_entropy": ("entropy at the end", "{:.3f}"),
    "distinct": ("distinct in a group", "{:.2f}"),
}
_CURVES = {
    "variant": ("reward", "{}"),
    "step": ("from step", "{}"),
    "accuracy": ("accuracy", "{:.3f}"),
    "low": ("low", "{:.3f}"),
    "high": ("high", "{:.3f}"),
    "auc": ("AUC", "{:.2f}"),
    "mean_tokens": ("tokens", "{:.1f}"),
    "mean_entropy": ("entropy", "{:.3f}"),
}
_RUNS = {
    "variant": ("reward", "{}"),
    "seed": ("seed", "{}"),
    "first": ("accuracy at the start", "{:.3f}"),
    "best": ("highest", "{:.3f}"),
    "last": ("at the end", "{:.3f}"),
}


def tables_of(subject: Subject, curves: Curves) -> list[Table]:
    """Return the tables of a subject: the result of each reward, its warning signs, the curves, and every run."""
    name = subject.name
    ends = [_end(variant, runs, curves.get(CONTROL, {})) for variant, runs in curves.items()]
    return [
        Table(f"{name}: ends", _ENDS, ends, [subject.text]),
        Table(f"{name}: signs", _SIGNS, [_sign(variant, runs) for variant, runs in curves.items()]),
        Table(f"{name}: curves", _CURVES, [row for variant, runs in curves.items() for row in _points(variant, runs)]),
        Table(f"{name}: runs", _RUNS, [row for variant, runs in curves.items() for row in _runs(variant, runs)]),
    ]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over seeds, by Student's t; None if ``STUDENT_T`` has no such number."""
    if len(values) not in STUDENT_T:
        return None
    half = STUDENT_T[len(values)] * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _end(variant: str, runs: Runs, control: Runs) -> dict[str, Cell]:
    first, last = [run.windows[0] for run in runs.values()], [run.last for run in runs.values()]
    return {
        "variant": variant,
        "num_seeds": len(runs),
        "first": fmean(window.accuracy for window in first),
        "best": fmean(max(window.accuracy for window in run.windows) for run in runs.values()),
        "at_first_warning": fmean(run.at(run.first_warning).accuracy for run in runs.values()),
        "at_entropy_warning": fmean(run.at(run.warnings.get("entropy")).accuracy for run in runs.values()),
        "last": fmean(window.accuracy for window in last),
        "interval": _shown(interval([window.accuracy for window in last])),
        "against_start": _shown(interval([run.gain for run in runs.values()]), sign="+"),
        "against_control": _against_control(runs, {} if variant == CONTROL else control),
    }


def _sign(variant: str, runs: Runs) -> dict[str, Cell]:
    first, last = [run.windows[0] for run in runs.values()], [run.last for run in runs.values()]
    return {
        "variant": variant,
        "first_auc": _mean(first, lambda window: window.auc),
        "last_auc": _mean(last, lambda window: window.auc),
        "first_clipped": fmean(window.clipped for window in first),
        "mean_tokens": fmean(window.mean_tokens for window in last),
        "mean_entropy": fmean(window.mean_entropy for window in last),
        "distinct": fmean(window.distinct for window in last),
    }


def _against_control(runs: Runs, control: Runs) -> str | None:
    """Return the interval of the difference to the control's run with the same seed, which had the same prompts."""
    differences = [run.last.accuracy - control[seed].last.accuracy for seed, run in runs.items() if seed in control]
    return _shown(interval(differences), sign="+")


def _points(variant: str, runs: Runs) -> list[dict[str, Cell]]:
    return [_point(variant, windows) for windows in zip(*(run.windows for run in runs.values()), strict=True)]


def _point(variant: str, windows: Sequence[Window]) -> dict[str, Cell]:
    low, high = interval([window.accuracy for window in windows]) or (None, None)
    return {
        "variant": variant,
        "step": windows[0].first_step,
        "accuracy": fmean(window.accuracy for window in windows),
        "low": low,
        "high": high,
        "auc": _mean(windows, lambda window: window.auc),
        "mean_tokens": fmean(window.mean_tokens for window in windows),
        "mean_entropy": fmean(window.mean_entropy for window in windows),
    }


def _runs(variant: str, runs: Runs) -> list[dict[str, Cell]]:
    return [
        {
            "variant": variant,
            "seed": seed,
            "first": run.windows[0].accuracy,
            "best": max(window.accuracy for window in run.windows),
            "last": run.last.accuracy,
        }
        for seed, run in runs.items()
    ]


def _mean(windows: Sequence[Window], value: Callable[[Window], float | None]) -> float | None:
    present = [found for window in windows if (found := value(window)) is not None]
    return fmean(present) if present else None


def _shown(bounds: tuple[float, float] | None, sign: str = "") -> str | None:
    if bounds is None:
        return None
    low, high = bounds
    return f"{low:{sign}.3f} to {high:{sign}.3f}"
