"""Writes a run as one page of plots: self-contained, without any request, light or dark as the reader's browser is.

Reads the records; knows nothing about how they came to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs] - it has none
from plotly.io import to_html  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - likewise
from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingTypeStubs] - likewise

from vigor_trainer.monitoring.records import RoundRecord

ACCENT, SECOND = "#4f8cff", "#f2994a"
INK, GRID = "#8a8f98", "rgba(138, 143, 152, 0.22)"  # readable on white and on near-black
SMOOTHING = 0.4  # weight of the newest round in the thick line


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot: the fields of a record that it shows, and how to read it."""

    title: str
    fields: tuple[tuple[str, str], ...]  # (field of RoundRecord, name in the legend)
    text: str
    percent: bool = False


PLOTS = (
    Plot(
        "Scaled gradient norm",
        (("mean_scaled_grad_norm", "√T · ‖∇NLL‖"),),
        "How strongly each completion would pull at the weights, averaged over the round. The smallest norm of a "
        "group gets the reward +1, the largest −1, so training moves towards completions the model agrees with.",
    ),
    Plot(
        "Accuracy",
        (("accuracy", "answers found"),),
        "Share of completions whose last number is the answer. It is only counted, never rewarded: "
        "the model never learns which answer is right. With few completions a round it varies a lot.",
        percent=True,
    ),
    Plot(
        "Completion length",
        (("mean_length", "tokens"),),
        "Mean number of sampled tokens. The factor √T in the norm is there to keep the reward from paying for "
        "length alone.",
    ),
    Plot(
        "Reward against length",
        (("reward_length_correlation", "correlation"),),
        "Correlation of reward and length among the completions of one prompt. Near +1 or −1 the reward would be "
        "little more than a ruler; around 0 it is not about length.",
    ),
    Plot(
        "Confidence",
        (("mean_logprob", "mean log-probability"), ("mean_entropy", "mean entropy")),
        "In nats per token, from the same forward pass as the norm. Log-probability rising and entropy falling "
        "mean that the model grows surer of what it samples.",
    ),
    Plot(
        "Where the time went",
        (("score_seconds", "scoring"), ("wait_seconds", "waiting for weights")),
        "Seconds per round that training waited for the service. Weights are sent while completions are generated; "
        "what is left of that shows as waiting.",
    ),
)

COLUMNS = (
    ("step", "Step", "d"),
    ("weight_version", "Weights", "d"),
    ("mean_scaled_grad_norm", "Norm", ".2f"),
    ("mean_length", "Length", ".1f"),
    ("reward_length_correlation", "Reward × length", "+.2f"),
    ("accuracy", "Accuracy", ".0%"),
    ("mean_logprob", "Log-prob.", ".3f"),
    ("mean_entropy", "Entropy", ".3f"),
    ("sent_bytes", "Sent MB", ".0f"),
    ("score_seconds", "Score s", ".1f"),
)


def write_report(path: Path, records: Sequence[RoundRecord], *, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Write the page. `facts` are (name, value) pairs shown at its top.

    Raises:
        ValueError: there is no training round to show.
    """
    rounds = [record for record in records if record.mode == "train"]
    if not rounds:
        raise ValueError("no training round was recorded: nothing to report")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(rounds, title, facts), encoding="utf-8")


def cell(record: RoundRecord, field: str, form: str) -> str:
    """Return one number of a record as the tables show it."""
    value = getattr(record, field)
    if value is None:
        return "–"
    return format(value / 1e6 if field == "sent_bytes" else value, form)


def _page(rounds: Sequence[RoundRecord], title: str, facts: Sequence[tuple[str, str]]) -> str:
    return _TEMPLATE.format(
        title=escape(title),
        facts="".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts),
        plots="".join(_section(plot, rounds) for plot in PLOTS),
        head="".join(f"<th>{escape(name)}</th>" for _, name, _ in COLUMNS),
        rows="".join(_row(record) for record in rounds),
        plotly=get_plotlyjs(),
    )


def _section(plot: Plot, rounds: Sequence[RoundRecord]) -> str:
    if all(getattr(record, field) is None for record in rounds for field, _ in plot.fields):
        return ""
    drawing = to_html(
        _figure(plot, rounds),
        include_plotlyjs=False,
        full_html=False,
        default_height="240px",
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<section><h2>{escape(plot.title)}</h2>{drawing}<p>{escape(plot.text)}</p></section>"


def _row(record: RoundRecord) -> str:
    return "<tr>" + "".join(f"<td>{cell(record, field, form)}</td>" for field, _, form in COLUMNS) + "</tr>"


def _figure(plot: Plot, rounds: Sequence[RoundRecord]) -> go.Figure:
    steps = [record.step for record in rounds]
    traces: list[go.Scatter] = []
    for (field, name), colour in zip(plot.fields, (ACCENT, SECOND), strict=False):
        values = [getattr(record, field) for record in rounds]
        marker = {"color": colour, "size": 7, "opacity": 0.7}
        line = {"color": colour, "width": 2.5, "shape": "spline"}
        traces += [
            go.Scatter(x=steps, y=values, name=name, mode="markers", marker=marker, showlegend=False),
            go.Scatter(x=steps, y=smoothed(values), name=name, mode="lines", line=line, hoverinfo="skip"),
        ]
    return go.Figure(data=traces, layout=_layout(plot))


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Return the exponential moving average; a gap stays a gap and does not count."""
    result: list[float | None] = []
    level: float | None = None
    for value in values:
        if value is not None:
            level = value if level is None else SMOOTHING * value + (1 - SMOOTHING) * level
        result.append(None if value is None else level)
    return result


def _layout(plot: Plot) -> go.Layout:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "tickcolor": GRID}
    return go.Layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 13},
        margin={"l": 48, "r": 12, "t": 8, "b": 40},
        hovermode="x unified",
        hoverlabel={"bgcolor": "#20242c", "font": {"color": "#f2f4f8"}},
        showlegend=len(plot.fields) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={**axis, "title": {"text": "step", "font": {"size": 13}}, "showgrid": False, "zeroline": False},
        yaxis={**axis, "nticks": 6, **({"tickformat": ".0%", "rangemode": "tozero"} if plot.percent else {})},
    )


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
:root {{ --page: #f5f6f8; --card: #fff; --ink: #1d2129; --soft: #5d6470; --line: #e3e6eb; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #12151a; --card: #1a1e25; --ink: #e8eaee; --soft: #a1a8b4; --line: #2b313b; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 40px 20px 64px; }}
h1 {{ font-size: 1.75rem; line-height: 1.25; margin: 0 0 20px; letter-spacing: -0.01em; }}
h2 {{ font-size: 1.05rem; margin: 0 0 8px; }}
dl {{ display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 0 0 16px; }}
.hint {{ color: var(--soft); margin: 0 0 20px; }}
dt {{ color: var(--soft); font-size: 0.82rem; }}
dd {{ margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 12px; }}
section {{ padding: 18px 20px; min-width: 0; overflow: hidden; }}
section p {{ color: var(--soft); font-size: 0.92rem; margin: 6px 0 0; }}
.table {{ margin-top: 20px; overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 500; }}
tbody tr:last-child td {{ border-bottom: 0; }}
</style>
<script>{plotly}</script>
</head>
<body>
<main>
<h1>{title}</h1>
<dl>{facts}</dl>
<p class="hint">A point is one round, scored by the weights that wrote its completions; a line is a moving average.</p>
<div class="plots">{plots}</div>
<section class="table"><h2>Every round</h2>
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>
</main>
<script>addEventListener("load", () => dispatchEvent(new Event("resize")))</script>
</body>
</html>
"""
