"""`make coverage` shows the share of each room, and the packages that it measures are the three."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from tests.repo.coverage_by_room import main, table
from tests.repo.rooms import PACKAGES, ROOT

COUNTS = {"num_statements": 10, "covered_lines": 9, "num_branches": 10, "covered_branches": 6}
REPORT = {
    "files": {
        str(ROOT / "client/vigor_client/ranking.py"): {"summary": COUNTS},
        str(ROOT / "client/vigor_client/transport/retry.py"): {"summary": COUNTS},
        str(ROOT / "client/vigor_client/transport/wire.py"): {"summary": {**COUNTS, "covered_lines": 10}},
        str(ROOT / "service/vigor_service/__init__.py"): {"summary": COUNTS},
    },
    "totals": {"num_statements": 30, "covered_lines": 28, "num_branches": 30, "covered_branches": 18},
}


def test_files_are_added_up_to_rooms_low_to_high() -> None:
    assert table(REPORT).splitlines() == [
        "| room | statements | branches | covered |",
        "|---|---|---|---|",
        "| `vigor_client.ranking` | 10 | 10 | 75.0% |",
        "| `vigor_client.transport` | 20 | 20 | 77.5% |",
        "| all | 30 | 30 | 76.7% |",
    ]


def test_the_summary_gets_the_table_too(tmp_path: Path) -> None:
    (tmp_path / "coverage.json").write_text(json.dumps(REPORT))
    main(str(tmp_path / "coverage.json"), str(tmp_path / "summary.md"))
    assert (tmp_path / "summary.md").read_text() == f"## Coverage by room\n\n{table(REPORT)}"


def test_the_three_packages_are_measured_in_every_process_and_too_little_is_an_error() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]
    assert settings["run"]["source_pkgs"] == list(PACKAGES)
    assert "subprocess" in settings["run"]["patch"]
    assert settings["report"]["fail_under"] > 0
