"""What every shape of the HTTP API is made of: the base model, token ids, text."""

from __future__ import annotations

import json
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

from vigor_client.fault_limit import refuse_many_names

Place = tuple[str | int, ...]
"""Where something is in JSON: names and positions, from the outermost on."""


class WireModel(BaseModel):
    """A shape on the wire: unknown fields are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_names(cls, value: object, info: ValidationInfo) -> object:
        return refuse_many_names(value, info)


def half_character(value: object) -> tuple[Place, str] | None:
    """Return where text, or JSON with text in it, holds half of a surrogate pair, and which; None if it holds none.

    Such text is no Unicode and has no tokens. It comes from cutting text between the two UTF-16 units of a character.
    """
    pending: list[tuple[Place, object]] = [((), value)]
    while pending:
        place, part = pending.pop()
        if isinstance(part, str):
            if said := _half_in_text(part):
                return place, said
        elif isinstance(part, dict):
            items = cast("dict[object, object]", part)
            if said := next(filter(None, (_half_in_text(str(name)) for name in items)), None):
                return place, f"a name in it: {said}"
            pending += [((*place, str(name)), item) for name, item in reversed(items.items()) if _may_hold_text(item)]
        elif isinstance(part, list):
            items = list(enumerate(cast("list[object]", part)))
            pending += [((*place, index), item) for index, item in reversed(items) if _may_hold_text(item)]
    return None


def half_character_in_json(text: bytes | bytearray) -> tuple[Place, str] | None:
    """Return what ``half_character`` finds in JSON that pydantic takes for none because of it."""
    try:
        return half_character(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _may_hold_text(value: object) -> bool:
    return isinstance(value, str | dict | list)


def _half_in_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        unit = f"\\u{ord(text[error.start]):04x}"
        return f"character {error.start} is half of a surrogate pair ({unit}): the text was cut within a character"
    return None


def refuse_half_characters(value: object) -> object:
    """Return the value as it is.

    Raises:
        ValueError: it holds half of a surrogate pair; names the place.
    """
    if found := half_character(value):
        place, said = found
        raise ValueError(": ".join(filter(None, (".".join(map(str, place)), said))))
    return value


WholeCharacters = BeforeValidator(refuse_half_characters)
"""Refuses text, or JSON with text in it, that holds half of a surrogate pair."""

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
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = start + int(fault["loc"][-1])
            raise ValueError(f"item {place}: {fault['msg']}") from error
    return checked


_SLICE_ITEMS = 1 << 17
_Sliced = WrapValidator(_validate_in_slices)
# A long list of nothing but wrong ids would cost a hundred times its size in errors: the first one is named.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True), _Sliced]
Mask = Annotated[list[MaskBit], Field(fail_fast=True), _Sliced]
