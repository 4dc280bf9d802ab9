"""The README is true: its tree names every file, and its times are those of the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.contestants import ENGINE, IDEAL, PUBLISHED
from benchmarks.report import RESULTS, read_report

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_file_of_the_packages() -> None:
    for folder in ("client", "service", "trainer"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "__init__.py":
                relative = file.relative_to(ROOT)
                block = README.partition(f"\n{relative.parent}/\n")[2].partition("/\n")[0]
                assert f"\n  {file.name} " in f"\n{block}", relative


@pytest.mark.parametrize("result", ["engine_cpu", "engine_gpu"])
def test_the_measured_times_are_those_of_the_result(result: str) -> None:
    for table in (table for table in read_report(RESULTS / f"{result}.json").tables if table.name != "untied"):
        rows = {row["contestant"]: row for row in table.rows}
        for loop in (PUBLISHED, IDEAL):
            assert f"{rows[loop]['seconds']:.2f} s, {rows[loop]['times_engine']:.2f}×" in README, (table.name, loop)
        assert f"| {rows[ENGINE]['seconds']:.2f} s |" in README, table.name
