"""The help of `vigor-trainer`: its own flags by subject, without the imports that training needs."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vigor_trainer.config.arguments import DESCRIPTION, USAGE, VigorArguments

HELP_FLAGS = ("-h", "--help")
ALL_FLAG = "--help-all"
_MOST_COLUMNS, _INDENT = 100, 6
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", bool: "true|false"}
_OTHERS = f"""vigor-trainer {ALL_FLAG}                 these flags and all of TRL's; loads TRL first
vigor-trainer {{eval,audit,report}} --help   the other commands
vigor-trainer --version"""


def own_help(num_columns: int | None = None) -> str:
    """Return the help text: usage, and each flag under the heading of its class."""
    width = min(num_columns or shutil.get_terminal_size().columns, _MOST_COLUMNS)
    sections = (f"{title}\n" + "\n".join(_flag(each, width) for each in own) for title, own in _subjects())
    return "\n\n".join([f"usage: {USAGE}", DESCRIPTION, *sections, f"More\n{textwrap.indent(_OTHERS, '  ')}"]) + "\n"


def _subjects() -> Iterator[tuple[str, list[Field[Any]]]]:
    """Yield the first docstring line of each class of arguments without its full stop, and the fields that it adds."""
    for kind in reversed(VigorArguments.__mro__[1:-1]):
        own = [each for each in fields(VigorArguments) if each.name in kind.__annotations__]
        yield (kind.__doc__ or "").partition("\n")[0].rstrip("."), own


def _flag(field: Field[Any], width: int) -> str:
    lines = textwrap.wrap(f"{field.metadata['help']}{_default(field)}", width - _INDENT)
    name = f"  --{field.name} {_metavar(get_type_hints(VigorArguments)[field.name])}"
    return "\n".join([name, *(" " * _INDENT + line for line in lines)])


def _default(field: Field[Any]) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return " (required)"
    value = field.default if field.default_factory is MISSING else " ".join(field.default_factory())
    if value is None:
        return ""
    return f" (default: {str(value).lower() if isinstance(value, bool) else value})"


def _metavar(annotation: Any) -> str:  # noqa: ANN401 - a type hint
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is list:
        return "TEXT …"
    if annotation in _METAVARS:
        return _METAVARS[annotation]
    return _metavar(next(each for each in get_args(annotation) if each is not type(None)))
