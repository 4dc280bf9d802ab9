"""Writes an audit as one self-contained page, which makes no request and follows the browser's light or dark mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs] - it has none
from plotly.io import to_html  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - likewise
from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - likewise

from vigor_trainer.audit.metrics import AuditMetrics, RewardMetrics
from vigor_trainer.audit.scoring import AuditedCompletion
from vigor_trainer.audit.verdict import Verdict
from vigor_trainer.monitoring.intervals import Estimate

MAX_POINTS = 4000  # in the plots of norms: more points would make the page slow, but not clearer
RIGHT, WRONG = "#4f8cff", "#f2994a"
INK, GRID = "#8a8f98", "rgba(138, 143, 152, 0.22)"  # readable on white and on near-black

_AUC_TEXT = (
    "Share of pairs, a correct and a wrong completion of the same question, in which the correct one has the larger "
    "reward. 50 % is chance; equal rewards count half. Bars are 95 % intervals over questions."
)
_BEST_OF_TEXT = (
    "Accuracy of the completion with the largest reward in its group. The lines show what the same model reaches on "
    "average over its samples, what it reaches greedily, and what a perfect choice among the samples would reach."
)
_NORM_TEXT = (
    "Each point is a completion. If the points fall or rise with length, the norm, and so the rank, depends partly on "
    "length."
)


def write_page(
    path: Path, metrics: AuditMetrics, verdict: Verdict, completions: Sequence[AuditedCompletion], *, title: str
) -> None:
    """Write the page."""
    sampled = [each for each in completions if each.decoding == "sampled"]
    shown = sampled[:: -(-len(sampled) // MAX_POINTS) or 1]
    sections = [
        _section("AUC of each reward", _bars(metrics, lambda reward: reward.auc, {"chance": 0.5}), _AUC_TEXT),
        _section(
            "Best of each group", _bars(metrics, lambda reward: reward.best_of_accuracy, _lines(metrics)), _BEST_OF_TEXT
        ),
        _section("Norm against length", _points(shown, lambda each: each.grad_norm), _NORM_TEXT),
        _section("Norm times √T against length", _points(shown, lambda each: each.scaled_grad_norm), _NORM_TEXT),
    ]
    page = _TEMPLATE.format(
        title=escape(title),
        verdict=escape(verdict.sentence),
        facts="".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(metrics)),
        plots="".join(sections),
        rows="".join(_row(name, reward) for name, reward in metrics.rewards.items()),
        plotly=get_plotlyjs(),
    )
    path.write_text(page, encoding="utf-8")


def _facts(metrics: AuditMetrics) -> list[tuple[str, str]]:
    norms = metrics.norms
    estimates = {
        "Greedy accuracy": metrics.greedy_accuracy,
        "Mean accuracy": metrics.mean_accuracy,
        "Majority vote": metrics.majority_accuracy,
        "Any correct": metrics.best_possible_accuracy,
        "Cut off": metrics.clipped_share,
        "Mean length": metrics.mean_length,
        "AUC of random orders": metrics.random_auc,
        "Slope of log norm": norms.log_slope,
        "Slope, times √T": norms.scaled_log_slope,
        "Tied pairs": norms.tied_share,
        "Duplicates": norms.duplicate_share,
        "Spread of norms": norms.spread,
    }
    counts = f"{metrics.num_questions:,}, {metrics.num_mixed:,} with correct and wrong completions"
    return [
        ("Questions", counts),
        ("Sampled completions", f"{metrics.num_completions:,}"),
        ("Pairs", f"{metrics.num_pairs:,}"),
        *((name, _text(estimate)) for name, estimate in estimates.items()),
    ]


def _lines(metrics: AuditMetrics) -> dict[str, float]:
    found = {
        "mean": metrics.mean_accuracy,
        "greedy": metrics.greedy_accuracy,
        "any correct": metrics.best_possible_accuracy,
    }
    return {name: estimate.value for name, estimate in found.items() if estimate}


def _bars(
    metrics: AuditMetrics, number: Callable[[RewardMetrics], Estimate | None], lines: dict[str, float]
) -> go.Figure:
    """Return a plot of one point with its interval per reward, the best on top, and reference lines."""
    found = [(name, estimate) for name, reward in metrics.rewards.items() if (estimate := number(reward))]
    found.sort(key=lambda item: item[1].value)
    estimates = [estimate for _, estimate in found]
    above = [estimate.high - estimate.value for estimate in estimates]
    below = [estimate.value - estimate.low for estimate in estimates]
    points = go.Scatter(
        x=[estimate.value for estimate in estimates],
        y=[name.replace("_", " ") for name, _ in found],
        mode="markers",
        marker={"color": RIGHT, "size": 9},
        error_x={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": RIGHT},
    )
    layout = _layout(x={"tickformat": ".0%"}, y={"automargin": True})
    shapes = [
        {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": {"color": INK, "dash": "dot"}}
        for x in lines.values()
    ]
    names = [
        {"x": x, "yref": "paper", "y": 1, "yanchor": "bottom", "text": name, "showarrow": False}
        for name, x in lines.items()
    ]
    return go.Figure(data=[points], layout=layout | {"shapes": shapes, "annotations": names, "showlegend": False})


def _points(completions: Sequence[AuditedCompletion], norm: Callable[[AuditedCompletion], float | None]) -> go.Figure:
    traces: list[go.Scatter] = []
    for is_correct, name, colour in ((False, "wrong", WRONG), (True, "correct", RIGHT)):
        those = [each for each in completions if each.is_correct is is_correct]
        marker = {"color": colour, "size": 6, "opacity": 0.6}
        x, y = [each.num_tokens for each in those], list(map(norm, those))
        traces.append(go.Scatter(x=x, y=y, name=name, mode="markers", marker=marker))
    axes = _layout(x={"type": "log", "title": {"text": "tokens"}}, y={"type": "log", "title": {"text": "norm"}})
    return go.Figure(data=traces, layout=axes | {"legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})


def _layout(*, x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "tickcolor": GRID}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 56, "r": 12, "t": 28, "b": 44},
        "xaxis": axis | x,
        "yaxis": axis | y,
    }


def _section(heading: str, figure: go.Figure, text: str) -> str:
    drawing: str = to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        default_height="340px",
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<section><h2>{escape(heading)}</h2>{drawing}<p>{escape(text)}</p></section>"


def _row(name: str, reward: RewardMetrics) -> str:
    cells = (
        reward.auc,
        reward.auc_minus_random,
        reward.best_of_accuracy,
        reward.best_of_minus_greedy,
        reward.best_of_minus_mean,
    )
    numbers = "".join(f"<td>{escape(_text(cell))}</td>" for cell in cells)
    return f"<tr><th>{escape(name.replace('_', ' '))}</th>{numbers}</tr>"


def _text(estimate: Estimate | None) -> str:
    return str(estimate) if estimate else "–"


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
main {{ max-width: 1200px; margin: 0 auto; padding: 40px 20px 64px; font-variant-numeric: tabular-nums; }}
h1 {{ font-size: 1.75rem; line-height: 1.25; margin: 0 0 12px; letter-spacing: -0.01em; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.05rem; margin: 0 0 8px; }}
.verdict {{ font-size: 1.15rem; max-width: 60rem; margin: 0 0 24px; }}
dl {{ display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 0 0 24px; }}
dt {{ color: var(--soft); font-size: 0.82rem; }}
dd {{ margin: 0; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 20px; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 12px; }}
section {{ padding: 18px 20px; min-width: 0; overflow: hidden; }}
section p {{ color: var(--soft); font-size: 0.92rem; margin: 6px 0 0; }}
.table {{ margin-top: 20px; overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.92rem; }}
th, td {{ padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 500; }}
th:first-child {{ text-align: left; }}
tbody tr:last-child > * {{ border-bottom: 0; }}
</style>
<script>{plotly}</script>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="verdict">{verdict}</p>
<dl>{facts}</dl>
<div class="plots">{plots}</div>
<section class="table"><h2>Every reward, with 95 % intervals</h2>
<table><thead><tr><th>reward</th><th>AUC</th><th>AUC − random</th><th>best of group</th><th>− greedy</th><th>− mean</th>
</tr></thead><tbody>{rows}</tbody></table></section>
</main>
<script>addEventListener("load", () => dispatchEvent(new Event("resize")))</script>
</body>
</html>
"""
