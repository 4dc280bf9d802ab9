"""Reads the recipes of this package: `<name>.yaml`, and the `_<name>.yaml` that several recipes share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vigor_trainer.errors import UnsupportedSettingError

DIRECTORY = Path(__file__).parent
DEFAULT = "_default"
"""The file of the settings of a run without a recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a run by flag name, and a one-sentence description."""

    name: str
    about: str
    settings: dict[str, Any]


def recipe_names() -> list[str]:
    """Return the names that ``--recipe`` takes."""
    return sorted(path.stem for path in DIRECTORY.glob("[!_]*.yaml"))


def recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        UnsupportedSettingError: the recipe does not exist; lists those that do.
    """
    if name not in recipe_names():
        raise UnsupportedSettingError(f"--recipe {name}: give one of {', '.join(recipe_names())}")
    return _read(name)


def default_settings() -> dict[str, Any]:
    """Return the settings of a run without a recipe."""
    return dict(_read(DEFAULT).settings)


@cache
def _read(name: str) -> Recipe:
    content = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text(encoding="utf-8"))
    base = _read(content["base"]).settings if "base" in content else {}
    return Recipe(name, content["about"], base | content["settings"])
