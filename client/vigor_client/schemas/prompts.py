"""The wire contract of prompts: token ids, text, or chat messages with the other inputs of the chat template."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from vigor_client.schemas.common import Text, TokenIds, WholeCharacters, WireModel, refuse_half_characters
from vigor_client.schemas.fault_limit import FaultLimit, Item

MAX_MESSAGES = 4096

OF_MESSAGES = ("tools", "documents", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""Fields of a prompt that say how its messages are rendered."""

RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
        "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors",
        "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""Parameters of transformers' ``apply_chat_template``, which are not allowed in ``chat_template_kwargs``."""


def _as_parsed(value: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:  # noqa: ANN401 - JSON
    """Skip the check for JSON if the value was parsed from JSON, so that a service does not traverse it twice."""
    return value if isinstance(info.context, FaultLimit) else validate(value)


Json = Annotated[JsonValue, WrapValidator(_as_parsed)]
JsonObject = dict[str, Json]
JsonObjects = Annotated[list[JsonObject], WholeCharacters]


class TextPart(WireModel):
    """A part of a message. Further keys go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Json] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride] - narrower

    type: Literal["text"]
    text: Text


def _only_text(content: object) -> object:
    """Refuse a part that is not text by name, which a union of types would not do."""
    if isinstance(content, list):
        if len(cast("list[object]", content)) > MAX_MESSAGES:
            raise ValueError(f"has more than {MAX_MESSAGES} parts")
        for position, part in enumerate(cast("list[object]", content)):
            kind = cast("dict[str, object]", part).get("type") if isinstance(part, dict) else None
            if kind != "text" and not isinstance(part, TextPart):
                said = f"has the type {str(kind)[:100]!r}" if kind else "has no type"
                raise ValueError(f"part {position} {said}; only parts of the type `text` are scored")
            if isinstance(part, dict) and not isinstance(cast("dict[str, object]", part).get("text"), str):
                raise ValueError(f"part {position} has no `text`")
    elif content is not None and not isinstance(content, str):
        raise ValueError("is neither text nor a list of parts; give one of them")
    return cast("object", content)


class Message(WireModel):
    """One chat message, rendered by the model's own chat template.

    Further keys (``tool_calls``, ``tool_call_id``, ``name``, ``reasoning_content`` and whatever else a template reads)
    are handed to the template as they are. A key whose value is null counts as one that is not there.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Json] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride] - narrower

    role: Text = Field(min_length=1, examples=["user"])
    content: Annotated[str | list[Item[TextPart]] | None, WholeCharacters, BeforeValidator(_only_text)] = Field(
        default=None,
        examples=["What is 3 + 4?"],
        description="Text, or parts of the type `text`. May be null beside other keys, such as `tool_calls`.",
    )

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.content is None and not any(value is not None for value in (self.model_extra or {}).values()):
            raise ValueError("has neither `content` nor another key, such as `tool_calls`; give one of them")
        refuse_half_characters(self.model_extra)
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the message as a chat template sees it."""
        return self.model_dump(exclude_none=True)


class GivenPrompt(WireModel):
    """A prompt: its token ids, its text, or the messages of a chat with what else its template is given.

    ``tools``, ``documents``, ``chat_template_kwargs``, ``add_generation_prompt`` and ``continue_final_message`` mean
    what they mean in transformers' ``apply_chat_template``, and must be those of the generation.
    """

    prompt_ids: TokenIds | None = Field(default=None, min_length=1, examples=[[1, 733, 16289]])
    prompt: Text | None = Field(
        default=None, min_length=1, description="Tokenized with the tokenizer's own special tokens."
    )
    messages: list[Item[Message]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MESSAGES,
        description="Rendered by the chat template, with a generation prompt unless the fields below say otherwise.",
    )
    tools: JsonObjects | None = Field(default=None, description="JSON schemas of functions, for the chat template.")
    documents: JsonObjects | None = Field(default=None, description="Documents, for the chat template.")
    chat_template_kwargs: Annotated[JsonObject, WholeCharacters] | None = Field(
        default=None, description="Further variables of the chat template.", examples=[{"enable_thinking": False}]
    )
    add_generation_prompt: bool | None = Field(
        default=None, strict=True, description="Whether the beginning of an assistant's turn follows; default: it does."
    )
    continue_final_message: bool | None = Field(
        default=None, strict=True, description="The completions go on with the last message, which stays open."
    )

    @model_validator(mode="after")
    def _check_exactly_one_prompt(self) -> Self:
        given = [f"`{name}`" for name in ("prompt", "messages", "prompt_ids") if getattr(self, name) is not None]
        if not given:
            raise ValueError("has no prompt; give one of `prompt`, `messages` and `prompt_ids`")
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}; give one of them")
        return self

    @model_validator(mode="after")
    def _check_template_fields(self) -> Self:
        given = [name for name in OF_MESSAGES if getattr(self, name) is not None]
        if given and self.messages is None:
            raise ValueError(
                f"`{given[0]}` needs `messages`: a prompt given as ids or text is not rendered by a chat template"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("`continue_final_message` and `add_generation_prompt` exclude each other")
        if reserved := sorted(RESERVED_TEMPLATE_KWARGS.intersection(self.chat_template_kwargs or {})):
            raise ValueError(
                f"`chat_template_kwargs` cannot hold `{reserved[0]}`: it is an argument of apply_chat_template, not a "
                "variable of the template"
            )
        return self

    @model_validator(mode="after")
    def _check_last_turn(self) -> Self:
        """Refuse messages that end with the assistant's turn and do not say whether the completions continue it."""
        is_said = self.continue_final_message or self.add_generation_prompt is not None
        if self.messages and self.messages[-1].role == "assistant" and not is_said:
            raise ValueError(
                "the last message is the assistant's: give `continue_final_message` true if the completions go on with "
                "it, or `add_generation_prompt` true if they are another turn behind it"
            )
        return self
