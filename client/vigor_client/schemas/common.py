"""The building blocks of all shapes of the HTTP API: the base model, token ids, text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from vigor_client.schemas.fault_limit import refuse_many_names
from vigor_client.schemas.faults import faults_of

MAX_WEIGHT_VERSION = 2**53 - 1  # the largest integer that every JSON parser, and a metric, holds exactly
IDEMPOTENCY_HEADER = "Idempotency-Key"
"""The header that identifies the work of a request, so that a request sent again is done only once."""
WeightVersion = Annotated[int, Field(strict=True, ge=0, le=MAX_WEIGHT_VERSION)]
Checksum = Annotated[str, Field(pattern=r"^xxh3-128:[0-9a-f]{32}$", examples=["xxh3-128:" + "0" * 32])]

Place = tuple[str | int, ...]
"""A place in JSON: names and positions, from the outermost inwards."""


class WireModel(BaseModel):
    """A shape on the wire: unknown fields are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_names(cls, value: object, info: ValidationInfo) -> object:
        return refuse_many_names(value, info)


def half_character(value: object) -> tuple[Place, str] | None:
    """Return the place and a description of an unpaired surrogate in text or JSON; None if it has none.

    Such text is not valid Unicode and has no tokens. It comes from cutting text between the two UTF-16 units of a
    character.
    """
    path: list[str | int] = []
    levels = [_members([value])]
    while levels:
        key, part = next(levels[-1], _END)
        if part is _END[1]:
            levels.pop()
            path = path[:-1]
        elif isinstance(part, str):
            if said := _half_in_text(part):
                return (*path, key)[1:], said
        elif isinstance(part, dict | list):
            path, container = [*path, key], cast("dict[object, object] | list[object]", part)
            if said := _half_in_names(container):
                return tuple(path[1:]), said
            levels.append(_members(container))
    return None


def half_character_in_json(text: bytes | bytearray) -> tuple[Place, str] | None:
    """Return the result of ``half_character`` for JSON that pydantic calls invalid because of an unpaired surrogate."""
    try:
        return half_character(json.loads(text))
    except (ValueError, RecursionError):
        return None


_END: tuple[str, object] = ("", object())


def _members(container: dict[object, object] | list[object]) -> Iterator[tuple[str | int, object]]:
    """Yield the members of a dict or list, each with its name or position."""
    if isinstance(container, dict):
        return ((str(name), item) for name, item in container.items())
    return enumerate(container)


def _half_in_names(container: dict[object, object] | list[object]) -> str | None:
    if not isinstance(container, dict):
        return None
    said = next(filter(None, (_half_in_text(str(name)) for name in container)), None)
    return said and f"a name in it: {said}"


def _half_in_text(text: str) -> str | None:
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        unit = f"\\u{ord(text[error.start]):04x}"
        return f"character {error.start} is half of a surrogate pair ({unit}): the text was cut within a character"
    return None


def refuse_half_characters(value: object) -> object:
    """Return the value as it is.

    Raises:
        ValueError: it holds an unpaired surrogate (half of a pair); names the place.
    """
    if found := half_character(value):
        place, said = found
        raise ValueError(": ".join(filter(None, (".".join(map(str, place)), said))))
    return value


WholeCharacters = BeforeValidator(refuse_half_characters)
"""Validator that refuses text, or JSON with text, that holds an unpaired surrogate (half of a pair)."""

Text = Annotated[str, WholeCharacters]
TokenId = Annotated[int, Field(strict=True, ge=0)]
MaskBit = Annotated[int, Field(strict=True, ge=0, le=1)]


def _validate_in_slices(value: object, validate: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 - as pydantic has it
    """Let other threads run between two slices of a long list."""
    if not isinstance(value, list) or len(cast("list[object]", value)) <= _SLICE_ITEMS:
        return validate(value)
    items, checked = cast("list[object]", value), list[int]()
    for start in range(0, len(items), _SLICE_ITEMS):
        try:
            checked += validate(items[start : start + _SLICE_ITEMS])
        except ValidationError as error:
            fault = faults_of(error, BaseModel)[0]
            raise ValueError(f"item {start + int(fault.loc[-1])}: {fault.msg}") from error
    return checked


_SLICE_ITEMS = 1 << 17
_Sliced = WrapValidator(_validate_in_slices)
# Errors for a long list of only wrong ids would take a hundred times its size, so only the first id is named.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True), _Sliced]
Mask = Annotated[list[MaskBit], Field(fail_fast=True), _Sliced]
