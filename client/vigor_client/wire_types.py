"""What every shape of the HTTP API is made of: the base model, token ids, text."""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class WireModel(BaseModel):
    """A shape on the wire: unknown fields are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def half_character(value: object) -> str | None:
    """Say where text, or JSON with text in it, holds half of a surrogate pair; None if it holds none.

    Such text is no Unicode and has no tokens. It comes from cutting text between the two UTF-16 units of a character.
    """
    if isinstance(value, str):
        return _half_in_text(value)
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return next(filter(None, (_half_under(key, part) for key, part in pairs)), None)
    if isinstance(value, list):
        parts = enumerate(cast("list[object]", value))
        return next(filter(None, (_half_under(index, part) for index, part in parts)), None)
    return None


def _half_under(key: object, value: object) -> str | None:
    if found := half_character(key):
        return f"a name in it: {found}"
    found = half_character(value)
    return None if found is None else f"{key}: {found}"


def _half_in_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        unit = f"\\u{ord(text[error.start]):04x}"
        return f"character {error.start} is half of a surrogate pair ({unit}): the text was cut within a character"
    return None


def _refuse_half_characters(value: object) -> object:
    if found := half_character(value):
        raise ValueError(found)
    return value


WholeCharacters = BeforeValidator(_refuse_half_characters)
"""Refuses text, or JSON with text in it, that holds half of a surrogate pair."""

Text = Annotated[str, WholeCharacters]
TokenId = Annotated[int, Field(strict=True, ge=0)]
MaskBit = Annotated[int, Field(strict=True, ge=0, le=1)]
# A long list of nothing but wrong ids would cost a hundred times its size in errors: the first one is named.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Mask = Annotated[list[MaskBit], Field(fail_fast=True)]
