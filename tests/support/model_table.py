"""The table of docs/models.md, made from the families that the tests score.

``python -m tests.support.model_table`` writes it into the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.interface import EngineInfo

PAGE = Path(__file__).parents[2] / "docs/models.md"
HEADER = "| family | class | layout | rule: what it measures | by autograd |\n|---|---|---|---|---|\n"
MARKER = "table"


def table() -> str:
    """Return the table in Markdown."""
    return HEADER + "".join(_row(family, Engine(tiny_model(family), name=family).info) for family in FAMILIES)


def written(page: str, marker: str = MARKER) -> str:
    """Return what the page holds between two marks."""
    return _between(marker).findall(page)[0]


def replaced(page: str, marker: str, text: str) -> str:
    """Return the page with another text between the marks."""
    return _between(marker).sub(lambda _: text, page)


def _between(marker: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {marker} -->\n).*(?=<!-- end of {marker} -->)", re.DOTALL)


def _row(family: str, info: EngineInfo) -> str:
    rules = {rule: _modules(names) for rule, names in info.rules.items()}
    others = rules.pop("autograd", "none")
    measured = "<br>".join(f"**{rule}**: {modules}" for rule, modules in rules.items())
    return f"| {family} | {info.architecture} | {info.layout} | {measured} | {others} |\n"


def _modules(names: Sequence[str]) -> str:
    """Return the modules (or bare parameters) of all layers as one, each once, in order."""
    return ", ".join(dict.fromkeys(f"`{_short(name)}`" for name in names))


def _short(name: str) -> str:
    inside_layer = re.sub(r"^.*?\.(?:layers|h)\.\d+\.", "*.", name)
    return re.sub(r"\.(weight|bias)$", "", inside_layer)


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(), MARKER, table()))
