"""From the messages of a chat to the text that the model's own chat template makes of them.

Equals what transformers' ``apply_chat_template`` gives for the same messages and arguments; what a template would
leave out without a word is refused. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

from vigor_client.schemas import GivenPrompt, Message

Conversation = list[dict[str, Any]]
TEMPLATE_ERRORS = (TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
"""What a template, and what it calls, may raise on messages that it was not made for."""


class ChatTokenizer(Protocol):
    """What is asked of a transformers tokenizer that has a chat template."""

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
    """The messages cannot be rendered; ``field`` is the field of the prompt that is at fault."""

    def __init__(self, message: str, *, field: str = "messages") -> None:
        super().__init__(message)
        self.field = field


def rendered(tokenizer: ChatTokenizer, prompt: GivenPrompt) -> str:
    """Return the prompt's messages as text, special tokens written out.

    Raises:
        ChatPromptError: the template refuses them, or does not use a part of what it is given.
    """
    messages, options = prompt.messages or [], _options(prompt)
    _refuse_unused(tokenizer, prompt)
    try:
        text = tokenizer.apply_chat_template(_conversation(messages), tokenize=False, **options)
    except TEMPLATE_ERRORS as error:
        if not any(isinstance(message.content, list) for message in messages):
            raise ChatPromptError(f"the chat template refuses them: {error}") from error
        text = None
    if text is None or _prints_parts(text, messages):
        text = _without_parts(tokenizer, messages, options)
    _refuse_left_out(text, messages)
    return text


def closing_text(tokenizer: ChatTokenizer) -> str | None:
    """Return what the chat template writes behind an assistant's message; None where that cannot be told."""
    mark = "an answer"
    conversation: Conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": mark}]
    try:
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=False, tokenize=False)
    except TEMPLATE_ERRORS:
        return None
    return text.rpartition(mark)[2] if mark in text else None


def _options(prompt: GivenPrompt) -> dict[str, Any]:
    """As ``apply_chat_template`` takes them; what was not given is not passed on."""
    given = {name: getattr(prompt, name) for name in ("tools", "documents", "continue_final_message")}
    adds = not prompt.continue_final_message if prompt.add_generation_prompt is None else prompt.add_generation_prompt
    named = {name: value for name, value in given.items() if value}
    return {"add_generation_prompt": adds, **named, **(prompt.chat_template_kwargs or {})}


def _conversation(messages: Sequence[Message]) -> Conversation:
    return [message.for_template() for message in messages]


def _refuse_unused(tokenizer: ChatTokenizer, prompt: GivenPrompt) -> None:
    """Jinja takes any variable, also one that the template never reads."""
    names = {name: name for name in ("tools", "documents") if getattr(prompt, name)}
    names |= dict.fromkeys(prompt.chat_template_kwargs or {}, "chat_template_kwargs")
    if not names:
        return
    try:
        template = tokenizer.get_chat_template(tools=prompt.tools)
    except ValueError as error:
        raise ChatPromptError(f"there is no chat template: {error}") from error
    for name, field in names.items():
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ChatPromptError(f"the chat template does not use `{name}`", field=field)


def _prints_parts(text: str, messages: Sequence[Message]) -> bool:
    """Whether the template takes text alone, and printed a list of parts as Python does."""
    contents = [message.for_template()["content"] for message in messages if isinstance(message.content, list)]
    return any(str(content) in text for content in contents)


def _without_parts(tokenizer: ChatTokenizer, messages: Sequence[Message], options: dict[str, Any]) -> str:
    conversation = _conversation(messages)
    for position, (message, given) in enumerate(zip(messages, conversation, strict=True)):
        if isinstance(message.content, list):
            if len(message.content) != 1:
                raise ChatPromptError(
                    f"the chat template takes no parts, and message {position} has {len(message.content)}: send its "
                    "`content` as one text"
                )
            given["content"] = message.content[0].text
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    except TEMPLATE_ERRORS as error:
        raise ChatPromptError(f"the chat template refuses them: {error}") from error


def _refuse_left_out(text: str, messages: Sequence[Message]) -> None:
    """A template made for parts may render plain text as nothing."""
    for position, message in enumerate(messages):
        if message.role != "user" or message.content is None:
            continue
        parts = [message.content] if isinstance(message.content, str) else [part.text for part in message.content]
        if any(part.strip() not in text for part in parts):
            raise ChatPromptError(
                f"the chat template leaves out the content of message {position}; one that takes parts only wants "
                'it as [{"type": "text", "text": …}]'
            )
