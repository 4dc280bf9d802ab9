"""The share of each room that tests ran: `python -m tests.repo.coverage_by_room coverage.json [SUMMARY]`.

Reads what `coverage json` writes and prints a table in Markdown; SUMMARY is a file that gets it too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.repo.rooms import ROOMS, is_package, modules, room

COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")
Report = dict[str, Any]


def table(report: Report) -> str:
    """Return a row for each room, low to high, and one for all: statements, branches, the share of both that ran."""
    rooms = {str(path): room(module) for module, path in modules().items() if module in ROOMS or not is_package(module)}
    totals: dict[str, dict[str, int]] = {name: dict.fromkeys(COUNTS, 0) for name in ROOMS}
    for file, content in report["files"].items():
        name = rooms.get(str(Path(file).resolve()))
        if name is None:  # the root of a package, which holds no more than its docstring
            continue
        for count in COUNTS:
            totals[name][count] += content["summary"][count]
    rows = [_row(f"`{name}`", counts) for name, counts in totals.items() if counts["num_statements"]]
    head = ["| room | statements | branches | covered |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, _row("all", report["totals"])]) + "\n"


def _row(name: str, counts: dict[str, int]) -> str:
    share = (counts["covered_lines"] + counts["covered_branches"]) / (counts["num_statements"] + counts["num_branches"])
    return f"| {name} | {counts['num_statements']} | {counts['num_branches']} | {share:.1%} |"


def main(report_file: str, summary: str | None = None) -> None:
    """Print the table of a report, and append it to the file ``summary``."""
    text = table(json.loads(Path(report_file).read_text()))
    print(text, end="")
    if summary is not None:
        with Path(summary).open("a") as file:
            file.write(f"## Coverage by room\n\n{text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
