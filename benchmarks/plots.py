"""Plots of results, as SVG that is readable on light and dark pages and identical for identical numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contestants import ENGINE
from benchmarks.report import Report, Table
from benchmarks.study.plots import study_figure

_GREY = "#808080"
_BLUE, _ORANGE, _GREEN, _RED = "#3b82c4", "#d9772b", "#4a9a5b", "#b84a62"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "vigor",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(kind: str, report: Report, source: Path, target: Path) -> None:
    """Draw a report of one kind (a key of ``PLOTS``) into an SVG file that names the digest of its source."""
    with mpl.rc_context(_STYLE):
        figure = PLOTS[kind](report)
        figure.savefig(
            target,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Description": digest(source)},
        )


def digest(source: Path) -> str:
    """Return the digest of the JSON that a plot shows, with which the plot is marked."""
    return f"sha256 of {source.name}: {hashlib.sha256(source.read_bytes()).hexdigest()}"


def _engine(report: Report) -> Figure:
    tables = [table for table in report.tables if table.rows]
    figure = Figure(figsize=(8, 1 + 1.5 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), 2, squeeze=False)
    for (time, memory), table in zip(axes, tables, strict=True):
        _bars(time, table, "times_engine", f"{table.name}: time / engine")
        _bars(memory, table, "peak_mib", f"{table.name}: peak MiB")
    return figure


def _bars(axes: Axes, table: Table, key: str, title: str) -> None:
    rows = [row for row in reversed(table.rows) if row[key] is not None]
    names, values = [str(row["contestant"]) for row in rows], _numbers(Table("", {}, rows), key)
    bars = axes.barh(names, values, color=[_ORANGE if name == ENGINE else _BLUE for name in names])
    axes.bar_label(bars, fmt=table.columns[key][1].format, padding=3, color=_GREY)
    axes.set_title(title, loc="left", fontsize=9)
    axes.margins(x=0.2)
    axes.xaxis.set_visible(False)


def _growth(report: Report) -> Figure:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots(2, len(report.tables), squeeze=False)
    for time, memory, table in zip(*axes, report.tables, strict=True):
        time.set_title(table.name, fontsize=9)
        _loop_and_engine(time, table, "seconds")
        _loop_and_engine(memory, table, "mib")
        memory.set_xlabel(table.columns["x"][0])
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak MiB above weights")
    axes[0][0].legend()
    return figure


def _loop_and_engine(axes: Axes, table: Table, unit: str) -> None:
    axes.plot(_numbers(table, "x"), _numbers(table, f"loop_{unit}"), "o-", color=_BLUE, label="ideal loop")
    axes.plot(_numbers(table, "x"), _numbers(table, f"engine_{unit}"), "o-", color=_ORANGE, label="engine")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _endurance(report: Report) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    table = report.table("samples")
    for key, colour in (("engine_mib", _ORANGE), ("http_mib", _BLUE)):
        axes.plot(_numbers(table, "requests"), _numbers(table, key), color=colour, label=table.columns[key][0])
    axes.set(xlabel="requests", ylabel="resident MiB", ylim=(0, None))
    axes.legend()
    return figure


def _long_sequences(report: Report) -> Figure:
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    (table,) = report.tables
    memory, time = figure.subplots(1, 2)
    for way, label, colour in (("once", "layers run once", _BLUE), ("twice", "checkpointed", _ORANGE)):
        rows = Table("", {}, [row for row in table.rows if row[f"{way}_mib"] is not None])
        memory.plot(_numbers(rows, "tokens"), _numbers(rows, f"{way}_mib"), "o-", color=colour, label=label)
        time.plot(_numbers(rows, "tokens"), _numbers(rows, f"{way}_seconds"), "o-", color=colour, label=label)
    memory.set(xlabel="tokens", ylabel="peak MiB above weights", xlim=(0, None), ylim=(0, None))
    time.set(xlabel="tokens", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    memory.legend()
    return figure


def _weights(report: Report) -> Figure:
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    speed, parts = figure.subplots(1, 2)
    table = report.table("rounds")
    rows = Table("", table.columns, [row for row in table.rows if row["round"] != "median"])
    names = [str(row["round"]) for row in rows.rows]
    for key, offset, colour in (("copy_mb_per_second", -0.2, _BLUE), ("upload_mb_per_second", 0.2, _ORANGE)):
        positions = [index + offset for index in range(len(names))]
        speed.bar(positions, _numbers(rows, key), 0.4, color=colour, label=rows.columns[key][0])
    _stacked(parts, rows, names, ("plan_seconds", "send_seconds", "verify_seconds", "swap_seconds"))
    speed.set_xticks(range(len(names)), names)
    speed.set(xlabel="round", ylabel="MB/s")
    parts.set(xlabel="round", ylabel="seconds")
    for axes in (speed, parts):
        axes.legend()
    return figure


def _deltas(report: Report) -> Figure:
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    share, parts = figure.subplots(1, 2)
    table = report.table("steps")
    rows = Table("", table.columns, [row for row in table.rows if row["encoding"] == "delta"])
    steps = [str(row["step"]) for row in rows.rows]
    share.plot(steps, [100 * value for value in _numbers(rows, "of_full")], "o-", color=_ORANGE, label="of all bytes")
    changed = [100 * value for value in _numbers(rows, "changed")]
    share.plot(steps, changed, "o-", color=_BLUE, label="values that changed")
    share.set(xlabel="step", ylabel="percent", ylim=(0, None))
    _stacked(parts, rows, steps, ("plan_seconds", "send_seconds", "verify_seconds", "swap_seconds"))
    parts.set(xlabel="step", ylabel="seconds")
    for axes in (share, parts):
        axes.legend()
        axes.set_xticks(range(0, len(steps), 2), steps[::2])
    return figure


def _overlap(report: Report) -> Figure:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    table = report.table("rounds")
    names = [f"up to {row['tokens']} tokens" for row in table.rows]
    parts = {"generate_seconds": _BLUE, "publish_seconds": _ORANGE, "wait_seconds": _RED}
    _side_by_side(axes, table, names, parts)
    return figure


def _signals(report: Report) -> Figure:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    table = report.table("one group")
    names = [str(row["workload"]) for row in table.rows]
    _side_by_side(axes, table, names, {"norm_seconds": _BLUE, "signals_seconds": _ORANGE})
    return figure


def _side_by_side(axes: Axes, table: Table, names: list[str], colours: Mapping[str, str]) -> None:
    """Draw seconds: for each row, one bar for each of these columns."""
    width = 0.75 / len(colours)
    for number, (key, colour) in enumerate(colours.items()):
        positions = [index + (number - (len(colours) - 1) / 2) * width for index in range(len(names))]
        bars = axes.bar(positions, _numbers(table, key), width, color=colour, label=table.columns[key][0])
        axes.bar_label(bars, fmt="{:.2f}", padding=2, color=_GREY)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="seconds")
    axes.margins(y=0.2)
    axes.legend()


def _serving(report: Report) -> Figure:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    table = report.table("throughput")
    names = [str(row["round"]) for row in table.rows]
    keys = ("engine_tokens_per_second", "service_tokens_per_second")
    for offset, key, colour in zip((-0.2, 0.2), keys, (_BLUE, _ORANGE), strict=True):
        positions = [index + offset for index in range(len(names))]
        axes.bar(positions, _numbers(table, key), 0.4, color=colour, label=table.columns[key][0])
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="round", ylabel="tokens/s")
    axes.legend()
    return figure


def _metrics_cost(report: Report) -> Figure:
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    rounds = [table for table in report.tables if "cpu_ratio" in table.columns]
    for table, colour in zip(rounds, (_BLUE, _ORANGE, _GREEN, _RED), strict=False):
        *ratios, _median = _numbers(table, "cpu_ratio")
        axes.plot(range(1, len(ratios) + 1), ratios, "o", color=colour, label=table.name)
    axes.axhline(1, color=_GREY, linewidth=1)
    axes.set(xlabel="round", ylabel="processor time,\nwithout / with metrics")
    axes.legend()
    return figure


def _stacked(axes: Axes, table: Table, names: list[str], keys: Sequence[str]) -> None:
    bottoms = [0.0] * len(names)
    for key, colour in zip(keys, (_BLUE, _ORANGE, _GREEN, _RED), strict=True):
        values = _numbers(table, key)
        axes.bar(names, values, bottom=bottoms, color=colour, label=table.columns[key][0].removesuffix(", s"))
        bottoms = [bottom + value for bottom, value in zip(bottoms, values, strict=True)]


def _numbers(table: Table, key: str) -> list[float]:
    return [float(value) for row in table.rows if (value := row[key]) is not None]


PLOTS: dict[str, Callable[[Report], Figure]] = {
    "engine": _engine,
    "signals": _signals,
    "growth": _growth,
    "endurance": _endurance,
    "long-sequences": _long_sequences,
    "weights": _weights,
    "deltas": _deltas,
    "overlap": _overlap,
    "serving": _serving,
    "metrics-cost": _metrics_cost,
    "study": study_figure,
}
