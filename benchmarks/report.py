"""A result: tables of plain numbers with the conditions of their measurement, as JSON and as a page."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
import transformers

from benchmarks.measuring import hardware, product_libraries

RESULTS = Path(__file__).resolve().parent / "results"
Cell: TypeAlias = str | float | None
_TEMPLATE = """\
# {title}

- date: {date}
- hardware: {hardware}
- software: {software}
- command: `{command}`{notes}

{tables}
"""


@dataclass(frozen=True)
class Table:
    """Rows of numbers; ``columns`` gives each key its heading and the format of its cells. None is shown as a dash."""

    name: str
    columns: dict[str, tuple[str, str]]
    rows: list[dict[str, Cell]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Render the table alone."""
        lines = [[heading for heading, _ in self.columns.values()], ["---"] * len(self.columns)]
        for row in self.rows:
            lines.append([_cell(row[key], form) for key, (_, form) in self.columns.items()])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Report:
    """Everything that one command measured."""

    title: str
    date: str
    hardware: str
    software: str
    command: str
    notes: list[str]
    tables: list[Table]

    def markdown(self) -> str:
        """Render the whole page."""
        return _TEMPLATE.format(
            **{name: getattr(self, name) for name in ("title", "date", "hardware", "software", "command")},
            notes="".join(f"\n- {note}" for note in self.notes),
            tables="\n\n".join(map(_section, self.tables)),
        )

    def table(self, name: str) -> Table:
        """Return the table of that name."""
        return next(table for table in self.tables if table.name == name)

    def write(self, stem: Path) -> None:
        """Write ``stem.json`` and the page ``stem.md`` beside it."""
        stem.with_suffix(".json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        stem.with_suffix(".md").write_text(self.markdown())


def read_report(path: Path) -> Report:
    """Read what ``Report.write`` wrote as JSON."""
    content = json.loads(path.read_text())
    return Report(**{**content, "tables": [Table(**table) for table in content["tables"]]})


def new_report(
    title: str,
    module: str,
    arguments: Sequence[str],
    device: torch.device,
    tables: list[Table],
    notes: Sequence[str] = (),
) -> Report:
    """Return a report with the present conditions: date, hardware and versions."""
    return Report(
        title=title,
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        hardware=hardware(device),
        software=_software(device),
        command=" ".join([f"python -m {module}", *arguments]),
        notes=list(notes),
        tables=tables,
    )


def _software(device: torch.device) -> str:
    versions = [f"Python {sys.version.split()[0]}", f"torch {torch.__version__}"]
    libraries = product_libraries() if device.type == "cpu" else []
    return ", ".join([*versions, f"transformers {transformers.__version__}", *libraries])


def finish(report: Report, out: Path | None) -> None:
    """Print the page, and write it with its JSON if ``out`` is given."""
    print(report.markdown())
    if out is not None:
        report.write(out)


def _section(table: Table) -> str:
    notes = "".join(f"\n- {note}" for note in table.notes)
    return f"## {table.name}\n{notes and notes + chr(10)}\n{table.markdown()}"


def _cell(value: Cell, form: str) -> str:
    return "–" if value is None else form.format(value)
