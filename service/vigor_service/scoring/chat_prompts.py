"""Renders the messages of a chat as text with the model's own chat template.

The result equals that of transformers' ``apply_chat_template`` for the same messages and arguments. Content that a
template would silently drop is refused. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

from vigor_client.schemas.prompts import GivenPrompt, Message
from vigor_service.errors import ServiceError
from vigor_service.scoring.template_limit import within_limits
from vigor_service.threads.work_limit import checkpoint

Conversation = list[dict[str, Any]]
MAX_TEMPLATE_CHARACTERS = 1 << 24
MAX_TEMPLATE_VALUES = 1 << 17
"""Maximum number of values (numbers, texts, lists and objects) in the messages of a prompt and its other template
arguments."""
_MAX_REASON_CHARACTERS = 500  # a template may put a whole message into its error
_PRINTED_PART = "[{'type': 'text'"


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that applies its chat template."""

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str: ...  # noqa: ANN401 - JSON

    def apply_chat_template(
        self,
        conversation: Conversation,
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        **options: Any,  # noqa: ANN401 - JSON
    ) -> Any: ...  # noqa: ANN401 - text, when it is not asked to tokenize


class ChatPromptError(ValueError):
    """The messages cannot be rendered. ``field`` is the prompt's field that is at fault."""

    def __init__(self, message: str, *, field: str = "messages") -> None:
        super().__init__(message)
        self.field = field


class _TemplateError(Exception):
    """The template failed to render a conversation; the message says why."""


def rendered(tokenizer: ChatTokenizer, prompt: GivenPrompt, *, max_characters: int = MAX_TEMPLATE_CHARACTERS) -> str:
    """Return the prompt's messages as text, with special tokens written out.

    Raises:
        ChatPromptError: the template refuses the messages, fails on them, ignores a part of its input, or exceeds the
            steps or characters that ``within_limits`` allows.
        ServiceError: as ``checkpoint``.
    """
    _refuse_many_values(prompt)
    messages = prompt.messages or []
    options: dict[str, Any] = {**_options(prompt), "max_characters": max_characters}
    _refuse_unused(tokenizer, prompt)
    try:
        text = _apply(tokenizer, _conversation(messages), **options)
    except _TemplateError as error:
        if not any(isinstance(message.content, list) for message in messages):
            raise ChatPromptError(f"the chat template refuses them: {error}") from error
        text = None
    if text is None or _prints_parts(text, messages):
        text = _without_parts(tokenizer, messages, options)
    _refuse_left_out(text, messages)
    return text


def closing_text(tokenizer: ChatTokenizer) -> str | None:
    """Return what the chat template writes after an assistant's message; None if that cannot be determined."""
    mark = "an answer"
    conversation: Conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": mark}]
    try:
        text = _apply(tokenizer, conversation, add_generation_prompt=False)
    except _TemplateError:
        return None
    return text.rpartition(mark)[2] if mark in text else None


def _apply(
    tokenizer: ChatTokenizer,
    conversation: Conversation,
    *,
    add_generation_prompt: bool,
    max_characters: int = MAX_TEMPLATE_CHARACTERS,
    **options: Any,  # noqa: ANN401 - JSON
) -> str:
    """Return the text that the template renders for a conversation.

    A template is a program that comes with the checkpoint. Whatever it raises, such as a division by zero or an endless
    recursion, is its response to these messages and not a bug of the service. So every exception except ServiceError
    becomes a ``_TemplateError``.
    """

    def render() -> str:
        return tokenizer.apply_chat_template(
            conversation, add_generation_prompt=add_generation_prompt, tokenize=False, **options
        )

    try:
        return within_limits(render, max_characters=max_characters)
    except ServiceError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise _TemplateError(reason[:_MAX_REASON_CHARACTERS]) from error


def _options(prompt: GivenPrompt) -> dict[str, Any]:
    """Return the arguments for ``apply_chat_template``, without those that the prompt does not give."""
    given = {name: getattr(prompt, name) for name in ("tools", "documents", "continue_final_message")}
    adds = not prompt.continue_final_message if prompt.add_generation_prompt is None else prompt.add_generation_prompt
    named = {name: value for name, value in given.items() if value}
    return {"add_generation_prompt": adds, **named, **(prompt.chat_template_kwargs or {})}


def _conversation(messages: Sequence[Message]) -> Conversation:
    return [message.for_template() for message in messages]


def _refuse_many_values(prompt: GivenPrompt) -> None:
    """Refuse prompts with too many values: copying them takes time that the template's step limit does not count."""
    pending: list[object] = [prompt.tools, prompt.documents, prompt.chat_template_kwargs]
    for message in prompt.messages or []:
        pending.append(message.model_extra)
        if isinstance(message.content, list):
            pending.extend(part.model_extra for part in message.content)
    num_values = len(pending)
    while pending:
        items = _items(pending.pop())
        num_values += len(items)
        if num_values > MAX_TEMPLATE_VALUES:
            raise ChatPromptError(f"they contain more than {MAX_TEMPLATE_VALUES} values")
        pending.extend(items)


def _items(value: object) -> Collection[object]:
    """Return the items of a JSON object or array; none for other values."""
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()


def _refuse_unused(tokenizer: ChatTokenizer, prompt: GivenPrompt) -> None:
    """Refuse arguments that the template does not read: Jinja would ignore them silently."""
    names = {name: name for name in ("tools", "documents") if getattr(prompt, name)}
    names |= dict.fromkeys(prompt.chat_template_kwargs or {}, "chat_template_kwargs")
    if not names:
        return
    try:
        template = tokenizer.get_chat_template(tools=prompt.tools)
    except ValueError as error:
        raise ChatPromptError(f"the model has no chat template: {error}") from error
    for name, field in names.items():
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ChatPromptError(f"the chat template does not use `{name}`", field=field)


def _prints_parts(text: str, messages: Sequence[Message]) -> bool:
    """Return whether the template accepts only text, and printed a list of parts as Python's ``str`` does."""
    if _PRINTED_PART not in text:
        return False
    contents = [message.for_template()["content"] for message in messages if isinstance(message.content, list)]
    return any(_is_printed(content, text) for content in contents)


def _is_printed(content: object, text: str) -> bool:
    checkpoint()
    return str(content) in text


def _without_parts(tokenizer: ChatTokenizer, messages: Sequence[Message], options: dict[str, Any]) -> str:
    conversation = _conversation(messages)
    for position, (message, given) in enumerate(zip(messages, conversation, strict=True)):
        if isinstance(message.content, list):
            if len(message.content) != 1:
                raise ChatPromptError(
                    f"the chat template accepts no content parts, and message {position} has {len(message.content)}: "
                    "send its `content` as one text"
                )
            given["content"] = message.content[0].text
    try:
        return _apply(tokenizer, conversation, **options)
    except _TemplateError as error:
        raise ChatPromptError(f"the chat template refuses them: {error}") from error


def _refuse_left_out(text: str, messages: Sequence[Message]) -> None:
    """Refuse messages whose content is missing in the text: a template made for parts may drop plain text."""
    place = 0  # templates keep the order: each search begins where the last part was found
    for position, message in enumerate(messages):
        if message.role != "user" or message.content is None:
            continue
        checkpoint()
        parts = [message.content] if isinstance(message.content, str) else [part.text for part in message.content]
        for part in parts:
            place = _find(part.strip(), text, place)
            if place < 0:
                raise ChatPromptError(
                    f"the chat template leaves out the content of message {position}; a template that accepts only "
                    'parts needs it as [{"type": "text", "text": …}]'
                )


def _find(part: str, text: str, begin: int) -> int:
    """Return the part's place from ``begin`` on, or else its first place in the text; -1 if the text lacks it."""
    place = text.find(part, begin)
    return place if place >= 0 else text.find(part)
