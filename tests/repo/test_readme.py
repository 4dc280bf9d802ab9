"""The README is true: its times are those of the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.contestants import ENGINE, IDEAL, PUBLISHED
from benchmarks.report import RESULTS, read_report

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("result", ["engine_cpu", "engine_gpu"])
def test_the_measured_times_are_those_of_the_result(result: str) -> None:
    for table in (table for table in read_report(RESULTS / f"{result}.json").tables if table.name != "untied"):
        rows = {row["contestant"]: row for row in table.rows}
        for loop in (PUBLISHED, IDEAL):
            assert f"{rows[loop]['seconds']:.2f} s, {rows[loop]['times_engine']:.2f}×" in README, (table.name, loop)
        assert f"| {rows[ENGINE]['seconds']:.2f} s |" in README, table.name


@pytest.mark.parametrize("result", ["engine_cpu-xeon", "engine_cpu-xeon-avx2"])
def test_the_ratios_of_other_processors_are_those_of_their_results(result: str) -> None:
    (row,) = (line for line in README.splitlines() if f"({RESULTS.relative_to(ROOT)}/{result}.md)" in line)
    rows = [{row["contestant"]: row for row in table.rows} for table in read_report(RESULTS / f"{result}.json").tables]
    for loop in (PUBLISHED, IDEAL):
        short, long = (f"{each[loop]['times_engine']:.2f}×" for each in rows)
        assert f"| {short} and {long} |" in row


def test_the_cost_of_a_model_is_that_of_its_result() -> None:
    for table in read_report(RESULTS / "engine_gpu.json").tables:
        (engine,) = (row for row in table.rows if row["contestant"] == ENGINE)
        (used,) = re.findall(r"GPU memory in use at the end: ([\d.]+) GB", "\n".join(table.notes))
        size = table.name.removeprefix("qwen2.5-").upper()
        assert f"| {size} | {engine['seconds']:.2f} | {used} GB |" in README
