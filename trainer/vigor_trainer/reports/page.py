"""Writes runs as one self-contained page, which makes no requests and runs only its own scripts."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, cast

from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.reports.curves import (
    accuracy_share,
    auc_over_steps,
    by_rank,
    held_out_accuracy,
    logged_line,
    metric_line,
    norms_against_length,
    over_steps,
    repetition_share,
    truncated_share,
)
from vigor_trainer.reports.examples import held_out_examples
from vigor_trainer.reports.listing import listing_of, share_shown
from vigor_trainer.reports.runs import Run
from vigor_trainer.reports.settings import settings_of
from vigor_trainer.reports.step_seconds import mean_step_seconds
from vigor_trainer.reports.verdict import verdict

MAX_COMPLETIONS = 10_000

_FILES = Path(__file__).parent / "page"
_SCRIPTS = ("plots.js", "completions.js", "summary.js", "report.js")
_METRICS: Mapping[str, Callable[[RoundRecord], float | None]] = {
    "norm": lambda record: record.mean_scaled_grad_norm,
    "length": lambda record: record.mean_length,
    "entropy": lambda record: record.mean_entropy,
    "logprob": lambda record: record.mean_logprob,
    "correlation": lambda record: record.reward_length_correlation,
    "seconds": lambda record: record.score_seconds + record.wait_seconds,
}


def write_report(
    path: Path,
    runs: Sequence[Run],
    *,
    title: str | None = None,
    facts: Sequence[tuple[str, str]] = (),
    max_completions: int = MAX_COMPLETIONS,
) -> int:
    """Write the page; return how many completions are in it with their text.

    Without a ``title``, the title is the verdict on the numbers; the verdict is also shown below a given title.
    ``facts`` are (name, value) pairs shown at the top. Curves use all completions. Above ``max_completions`` or 30
    million characters, the list has whole groups chosen evenly over the steps.
    """
    share = share_shown(runs, max_completions=max_completions)
    shown = [_run_data(run, share) for run in runs]
    found = verdict(runs)
    data = {"facts": list(facts), "settings": settings_of(runs), "runs": shown}
    path.parent.mkdir(parents=True, exist_ok=True)
    # An unpaired surrogate, which is not valid Unicode, becomes its JSON escape.
    text = _page(found.title if title is None else title, found.sentences, _as_json(data))
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return sum(len(run["completions"]["columns"]["text"]) for run in shown)


def _run_data(run: Run, share: float) -> dict[str, Any]:
    metrics = {name: metric_line(run.rounds, measure) for name, measure in _METRICS.items()}
    return {
        "name": run.name,
        "rewards": run.rewards,
        "num_rounds": len(run.rounds),
        "num_completions": sum(len(group.samples) for group in run.groups),
        "version": run.rounds[-1].weight_version,
        "held_out": held_out_accuracy(run.evaluations),
        "held_out_truncated": _truncated(run),
        "examples": held_out_examples(run),
        "step_seconds": None if (seconds := mean_step_seconds(run)) is None else asdict(seconds),
        "accuracy": over_steps(run.groups, accuracy_share),
        "auc": auc_over_steps(run),
        "repetition": over_steps(run.groups, repetition_share),
        "truncated": over_steps(run.groups, truncated_share),
        "bins": by_rank(run.groups),
        "norms": norms_against_length(run.groups),
        "metrics": metrics | {"kl": logged_line(run.log, "kl")},
        "completions": asdict(listing_of(run, share)),
    }


def _truncated(run: Run) -> list[float] | None:
    """Return the truncated shares of the held-out completions before and after training; None if not recorded."""
    if run.held_out is None:
        return None
    found = [run.held_out.truncated_share(step) for step in (run.held_out.first_step, run.held_out.last_step)]
    return [share.value for share in found if share is not None]


def _as_json(data: object) -> str:
    """Return compact JSON for a ``script`` element, without any ``<`` that could end the element."""
    text = json.dumps(_rounded(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _rounded(value: Any) -> Any:  # noqa: ANN401 - what JSON can hold
    """Return the value with numbers rounded to five digits; numbers that are not finite become null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in cast("dict[str, Any]", value).items()}
    return [_rounded(item) for item in cast("list[Any]", value)] if isinstance(value, list | tuple) else value


def _page(title: str, sentences: Sequence[str], data: str) -> str:
    plotly = get_plotlyjs()
    script = "\n".join(_file(name) for name in _SCRIPTS)
    parts = {
        "policy": f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "title": escape(title),
        "verdict": "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences),
        "style": _file("style.css"),
        "plotly": plotly,
        "data": data,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("index.html"))


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")
