"""The prompt of one row: text, or messages as TRL passes them to the chat template.

A prompt that TRL would change is refused.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic import ValidationError

from vigor_client import Message
from vigor_client.schemas.common import half_character
from vigor_client.schemas.faults import faults_of

Prompt = str | list[dict[str, Any]]

UNRENDERED_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that would change a prompt but that GRPO does not read."""


def prompt_of(value: object) -> Prompt:
    """Return text as it is, and messages without the keys that are null.

    Raises:
        ValueError: the value is neither, or a completion cannot follow it; says why.
    """
    if isinstance(value, str) and value.strip():
        refuse_half_character(value)
        return value
    if isinstance(value, list) and value:
        return _messages(cast("list[object]", value))
    raise ValueError("must be text, or messages with `role` and `content`")


def refuse_half_character(value: object) -> None:
    """Raise a ValueError if text, or a container of text, holds an unpaired surrogate (half of a pair)."""
    if found := half_character(value):
        place, said = found
        raise ValueError(": ".join([*map(str, place), said]))


def _messages(value: list[object]) -> list[dict[str, Any]]:
    messages = [_message(message, position) for position, message in enumerate(value)]
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "ends with an assistant message, after which TRL would begin another assistant turn: remove it"
        )
    return messages


def _message(value: object, position: int) -> dict[str, Any]:
    try:
        message = Message.model_validate(value)
    except ValidationError as error:
        fault = faults_of(error, Message)[0]
        raise ValueError(f"must be text, or messages with `role` and `content`: message {position}: {fault}") from error
    fields = message.for_template()
    if isinstance(message.content, list):
        if len(message.content) != 1:
            raise ValueError(f"message {position} has {len(message.content)} parts: write its `content` as one text")
        fields["content"] = message.content[0].text
    return fields
