"""The README is true: its times are those of the results."""

from __future__ import annotations

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
