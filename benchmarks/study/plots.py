"""Plots of a study: accuracy over steps, one panel per subject, each reward next to the control."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Cell, Report
from benchmarks.study.tables import CONTROL

CURVES_SUFFIX = ": curves"
_GREY = "#808080"
_COLOURS = {
    "vigor": "#d9772b",
    "vigor without √T": "#e3a878",
    "vigor without rank": "#8a5a2b",
    "self_certainty": "#3b82c4",
    "entropy": "#8ab6de",
    "logprob": "#5a6fb0",
    "majority": "#b84a62",
    "verifier": "#4a9a5b",
    CONTROL: _GREY,
}
_WITH_BAND = ("vigor", CONTROL)


def study_figure(report: Report) -> Figure:
    """Draw the accuracy of every reward; the bands are intervals over seeds, for the reward and the control."""
    tables = [table for table in report.tables if table.name.endswith(CURVES_SUFFIX)]
    figure = Figure(figsize=(4.6 * len(tables) + 1.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        axes.set(title=table.name.removesuffix(CURVES_SUFFIX), xlabel="step", ylim=(0, 1))
        for variant, colour in _COLOURS.items():
            _curve(axes, variant, colour, [row for row in table.rows if row["variant"] == variant])
    panels[0].set_ylabel("accuracy of sampled completions")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _curve(axes: Axes, variant: str, colour: str, rows: Sequence[dict[str, Cell]]) -> None:
    if not rows:
        return
    steps, low, high = _column(rows, "step"), _column(rows, "low"), _column(rows, "high")
    style = "--" if variant == CONTROL else "-"
    width = 2.2 if variant in _WITH_BAND else 1.2
    axes.plot(steps, _column(rows, "accuracy"), style, color=colour, linewidth=width, label=variant)
    if variant in _WITH_BAND and low and high:
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)


def _column(rows: Sequence[dict[str, Cell]], key: str) -> list[float]:
    return [float(value) for row in rows if (value := row[key]) is not None]
