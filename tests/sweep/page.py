"""The table of docs/models.md that says what the engine does with every model type of transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

import transformers

from tests.support.model_table import PAGE, replaced, written
from tests.sweep.check import Outcome

MARKER = "sweep"
_HEADER = "| family | class | outcome |\n|---|---|---|\n"


def rows(page: str) -> dict[str, str]:
    """Return the page's rows by family."""
    return {line.split(" | ")[0].removeprefix("| "): line for line in written(page, MARKER).splitlines()[4:]}


def row(outcome: Outcome) -> str:
    """Return the row of a family; why it is refused is no part of it, as other versions say it in other words."""
    return f"| {outcome.family} | {outcome.architecture} | {outcome.verdict} |"


def write(outcomes: Sequence[Outcome]) -> None:
    """Write the table into the page."""
    made = f"Made on {date.today():%Y-%m-%d} with transformers {transformers.__version__}.\n\n"
    lines = [row(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.family.lower())]
    PAGE.write_text(replaced(PAGE.read_text(), MARKER, made + _HEADER + "\n".join(lines) + "\n"))


def made_with(page: str) -> str:
    """Return the version of transformers that the table is about."""
    return re.findall(r"with transformers (\S+)\.\n", written(page, MARKER))[0]
