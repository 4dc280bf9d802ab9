"""The page of plots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.trainer.example_records import example_record
from vigor_trainer.reports.run_page import PLOTS, smoothed, write_report


def page(tmp_path: Path, *records: object) -> str:
    path = tmp_path / "demo" / "report.html"
    write_report(path, list(records), title="A <run>", facts=[("Model", "tiny & small")])  # pyright: ignore[reportArgumentType] - records of the tests
    text = path.read_text()
    return text[: text.index("<script>")] + text[text.index("</script>") :]  # without plotly itself


def test_the_page_shows_every_plot_every_round_and_every_fact(tmp_path: Path) -> None:
    text = page(tmp_path, example_record(0), example_record(1))
    for plot in PLOTS:
        assert f"<h2>{plot.title}</h2>" in text
        assert plot.text[:40] in text
    assert text.count("<tr>") == 3
    assert "<td>40.25</td><td>31.5</td><td>-0.12</td><td>25%</td>" in text
    assert "<h1>A &lt;run&gt;</h1>" in text
    assert "<dd>tiny &amp; small</dd>" in text


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    text = page(tmp_path, example_record(0))
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    text = page(tmp_path, example_record(0, accuracy=None))
    assert "<h2>Accuracy</h2>" not in text
    assert "<td>–</td>" in text


def test_evaluation_rounds_are_not_mixed_in(tmp_path: Path) -> None:
    text = page(tmp_path, example_record(0), example_record(1, mode="eval"))
    assert text.count("<tr>") == 2


def test_a_run_without_a_round_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training round"):
        page(tmp_path)


def test_smoothing_keeps_gaps_and_ends_near_the_newest() -> None:
    assert smoothed([1.0, None, 1.0]) == [1.0, None, 1.0]
    assert smoothed([0.0, 1.0]) == [0.0, pytest.approx(0.4)]
