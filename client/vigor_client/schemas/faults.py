"""Turns pydantic's errors about a request into places and plain messages, which both ends use.

It knows pydantic, but not the shapes that are validated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from pydantic import BaseModel, ValidationError

from vigor_client.schemas.nearest_name import nearest_name

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_SENTENCES = 10
_MAX_SHOWN_CHARACTERS = 40
_MAX_SHOWN_BITS = 128
_MAX_COMPARED_CHARACTERS = 100  # comparing two names takes time proportional to the product of their lengths
_ITEM_NAMES = {"groups": "group", "completions": "completion", "messages": "message", "files": "file"}
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is finite",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
}
"""Type of pydantic's error -> the value that is expected."""
_BOUNDS = {
    "ge": "{} or more",
    "gt": "more than {}",
    "le": "{} or less",
    "lt": "less than {}",
    "min_length": "{} or more",
    "max_length": "{} or fewer",
    "pattern": "text that matches {}",
    "class_name": "an object with the fields of {}",
}
"""Name in the context of pydantic's error -> the value that is expected."""


class Fault(NamedTuple):
    """One fault: its place, as names and positions from the outermost on, and what is wrong there."""

    loc: tuple[str | int, ...]
    msg: str

    def __str__(self) -> str:
        return fault_sentence(self.loc, self.msg)


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Return the faults of a value that is not a ``model``; for an unknown field, with the nearest known name.

    Faults that follow from others are left out: a missing field whose name was misspelled, and the length of a list
    whose items are wrong.
    """
    items = error.errors(include_url=False)
    nearest = {loc: _nearest_field(model, loc) for loc in islice(_unknown_fields(items), MAX_SENTENCES)}
    meant = {(*loc[:-1], name) for loc, name in nearest.items()}
    wrong_lists = {item["loc"][:-1] for item in items if item["loc"] and isinstance(item["loc"][-1], int)}
    return [
        Fault(item["loc"], _message(item, nearest.get(item["loc"])))
        for item in items
        if not (item["type"] == "missing" and item["loc"] in meant)
        and not (item["type"] in ("too_short", "too_long") and item["loc"] in wrong_lists)
    ]


def fault_sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return sentences for the first ten faults, as ``group 0, completion 2: needs ...``, and a count of the rest."""
    said = [str(fault) for fault in faults_of(error, model)]
    more = len(said) - MAX_SENTENCES
    return [*said[:MAX_SENTENCES], f"... and {more} more"] if more > 0 else said


def fault_sentence(loc: Sequence[str | int], msg: str) -> str:
    """Return a fault with its place in words: ``group 0, completion 2, `ids` item 3: is -1; give 0 or more``."""
    return ": ".join(filter(None, (", ".join(_place_words(loc)), msg)))


def _place_words(loc: Sequence[str | int]) -> Iterator[str]:
    parts = iter(enumerate(loc, start=1))
    for number, part in parts:
        position = loc[number] if number < len(loc) else None
        if isinstance(part, int):
            yield f"item {part}"
        elif isinstance(position, int):
            yield f"{_ITEM_NAMES.get(part, f'`{part}` item')} {position}"
            next(parts)
        else:
            yield f"`{part}`"


def _unknown_fields(items: Iterable[ErrorDetails]) -> Iterator[tuple[str | int, ...]]:
    return (item["loc"] for item in items if item["type"] == "extra_forbidden")


def _nearest_field(model: type[BaseModel], loc: Sequence[str | int]) -> str | None:
    return nearest_name(str(loc[-1])[:_MAX_COMPARED_CHARACTERS], _model_at(model, loc[:-1]).model_fields)


def _model_at(model: type[BaseModel], loc: Sequence[str | int]) -> type[BaseModel]:
    """Return the model of the value at a place within a ``model``."""
    for part in loc:
        if isinstance(part, str) and (field := model.model_fields.get(part)):
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _message(item: ErrorDetails, nearest: str | None) -> str:
    kind, value, context = item["type"], cast("object", item["input"]), item.get("ctx", {})
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "is not a known field" + (f"; did you mean `{nearest}`?" if nearest else "")
        case "value_error":
            return str(context["error"])
        case "json_invalid":
            return f"this is not JSON: {context['error']}"
        case "literal_error":
            return f"is {_shown(value)}; give {context['expected']}"
        case "too_short" | "string_too_short" | "too_long" | "string_too_long":
            return _length_message(value, context)
        case _:
            wanted = _WANTED.get(kind, "") or _bound(context)
            return f"is {_shown(value)}; give {wanted}" if wanted else item["msg"]


def _length_message(value: object, context: dict[str, Any]) -> str:
    unit, number = "characters" if isinstance(value, str) else "items", len(cast("str | list[object]", value))
    if not number:
        return "is empty; give one or more"
    return f"has {number} {unit}; give {_bound(context)}"


def _bound(context: dict[str, Any]) -> str | None:
    """Return the value that a limit requires; None if the error is not about a limit."""
    for name, wording in _BOUNDS.items():
        if (limit := context.get(name)) is not None:
            return wording.format(f"{limit:g}" if isinstance(limit, float) else limit)
    return None


def _shown(value: object) -> str:
    """Return a value as JSON, with long text shortened; for a container only its kind."""
    match value:
        case str():
            return repr(value if len(value) <= _MAX_SHOWN_CHARACTERS else value[:_MAX_SHOWN_CHARACTERS] + "…")
        case int() if value.bit_length() > _MAX_SHOWN_BITS:
            return "a number that is too large"
        case None | bool() | int() | float():
            return json.dumps(value)
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"of type {type(value).__name__}"
