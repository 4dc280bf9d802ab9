"""A result reads the same as JSON and as a page, and the pages of the docs show what the results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.endurance import mixed_groups, slope_per_request
from benchmarks.plots import digest
from benchmarks.publish import DOCS, PAGES, PLACE, plot_of, shown
from benchmarks.report import RESULTS, Report, Table, read_report

SHOWN = "".join((DOCS / name).read_text() for name in PAGES)
PLACES = list(PLACE.finditer(SHOWN))
ONLY_RESULTS = "".join((DOCS / name).read_text() for name in PAGES if name != "scaling.md")
NOT_DRAWN = {"front_cpu", "plan", "scaling_cpu"}
STORED = sorted(RESULTS.glob("*.json"))
TABLE = Table(
    "work", {"who": ("", "{}"), "s": ("seconds", "{:.1f}")}, [{"who": "a", "s": 1.25}, {"who": "b", "s": None}]
)
REPORT = Report("Title", "2026-01-01", "a computer", "torch", "python -m x", ["a note"], [TABLE])


def test_a_table_shows_headings_formatted_numbers_and_dashes() -> None:
    assert TABLE.markdown() == "|  | seconds |\n| --- | --- |\n| a | 1.2 |\n| b | – |"


def test_a_page_names_hardware_versions_and_command() -> None:
    page = REPORT.markdown()
    assert "- hardware: a computer\n- software: torch\n- command: `python -m x`\n- a note\n" in page
    assert f"## work\n\n{TABLE.markdown()}\n" in page


def test_a_report_survives_its_json(tmp_path: Path) -> None:
    REPORT.write(tmp_path / "result")
    assert read_report(tmp_path / "result.json").markdown() == (tmp_path / "result.md").read_text()


def test_every_stored_page_is_that_of_its_json() -> None:
    different = [p.stem for p in STORED if p.with_suffix(".md").read_text() != read_report(p).markdown()]
    assert different == []


def test_every_stored_result_is_shown_and_drawn_as_it_is() -> None:
    drawn = [path for path in STORED if path.stem not in NOT_DRAWN]
    assert [path.stem for path in drawn if digest(path) not in plot_of(path).read_text()] == []
    assert [path.stem for path in drawn if f"(plots/{plot_of(path).name})" not in SHOWN] == []
    assert {place["result"] for place in PLACES} >= NOT_DRAWN


def test_the_docs_show_the_tables_of_the_results() -> None:
    assert PLACES
    for place in PLACES:
        assert place["shown"] == shown(place["result"], place["what"]), place["what"]


def test_the_pages_of_results_have_no_measured_table_outside_of_these_places() -> None:
    rest = PLACE.sub("", ONLY_RESULTS)
    headings = re.findall(r"^\|.*\|\n\|[-| ]+\|$", rest, re.MULTILINE)
    assert headings == ["| contestant | what it is |\n|---|---|"]


def test_the_slope_ignores_what_came_before_the_warmth() -> None:
    samples = [(20, 900), (100, 1000), (200, 1010), (300, 1020)]
    assert slope_per_request(samples, warm=100) == pytest.approx(0.1)


def test_mixed_groups_are_mixed_and_the_same_every_time() -> None:
    groups = list(mixed_groups(40, 320))
    assert groups == list(mixed_groups(40, 320))
    assert {len(group) for group in groups} == set(range(1, 9))
    masks = [sequence.loss_mask for group in groups for sequence in group]
    assert None in masks
    assert all(mask is None or any(mask) for mask in masks)
    assert any(mask is not None and not all(mask) for mask in masks)
