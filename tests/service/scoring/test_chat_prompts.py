"""Messages become the text that the model's own template makes of them, with everything that it was given."""

from time import thread_time
from typing import Any, cast

import pytest
from pydantic import ValidationError

from tests.support.tiny_models import tiny_tokenizer
from vigor_client.schemas.prompts import GivenPrompt
from vigor_service.scoring.chat_prompts import (
    MAX_TEMPLATE_VALUES,
    ChatPromptError,
    ChatTokenizer,
    closing_text,
    rendered,
)
from vigor_service.scoring.template_limit import MAX_STEPS

BEGINS, ENDS = "<|im_start|>", "<|im_end|>\n"
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RICH = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% if documents %}DOCS {{ documents[0].text }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.tool_calls %}CALL {{ m.tool_calls[0].function.name }}{% endif %}"
    "{% if m.tool_call_id is defined %}ID {{ m.tool_call_id }} {% endif %}"
    "{% if m.content is string %}{{ m.content }}"
    "{% elif m.content is defined %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)
ONLY_PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"unit": None}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "22 C"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"default": None}}}


def _tokenizer(template: str) -> Any:  # noqa: ANN401 - a transformers tokenizer
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _rendered(template: str, *messages: dict[str, Any], **fields: Any) -> str:  # noqa: ANN401 - fields of a prompt
    return rendered(_tokenizer(template), GivenPrompt.model_validate({"messages": list(messages), **fields}))


def user(content: object = "Hi", **keys: object) -> dict[str, Any]:
    return {"role": "user", "content": content, **keys}


@pytest.mark.parametrize(
    ("messages", "given"),
    [
        ([user()], {}),
        ([user(), {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT], {}),
        ([user(), {"role": "assistant", "tool_calls": [CALL]}, user("and?")], {}),
        ([user([{"type": "text", "text": "Weather"}, {"type": "text", "text": "?"}])], {}),
        ([user(name="ada"), {"role": "assistant", "content": "b", "reasoning_content": "c"}, user("d")], {}),
        ([user()], {"tools": [TOOL]}),
        ([user()], {"documents": [{"title": "T", "text": "It rains."}]}),
        ([user()], {"chat_template_kwargs": {"enable_thinking": False}}),
        ([user(), {"role": "assistant", "content": "Let me think."}], {"continue_final_message": True}),
        ([user(), {"role": "assistant", "content": "Yes."}], {"add_generation_prompt": True}),
        ([user()], {"add_generation_prompt": False}),
    ],
)  # fmt: skip
def test_it_equals_what_transformers_renders(messages: list[dict[str, Any]], given: dict[str, Any]) -> None:
    flat = {"add_generation_prompt": "continue_final_message" not in given, **given}
    expected = _tokenizer(RICH).apply_chat_template(
        messages, tokenize=False, **{**flat, **flat.pop("chat_template_kwargs", {})}
    )
    assert _rendered(RICH, *messages, **given) == expected
    assert rendered(_tokenizer(RICH), _sent({"messages": messages, **given})) == expected


def _sent(fields: dict[str, Any]) -> GivenPrompt:
    """A prompt as the service gets it from the client."""
    return GivenPrompt.model_validate_json(GivenPrompt.model_validate(fields).model_dump_json(exclude_none=True))


def test_a_prefilled_answer_is_continued_and_its_turn_stays_open() -> None:
    messages = [user("2+2?"), {"role": "assistant", "content": "<think>\nLet me see"}]
    text = _rendered(PLAIN, *messages, continue_final_message=True)
    assert text == f"{BEGINS}user\n2+2?{ENDS}{BEGINS}assistant\n<think>\nLet me see"


def test_a_last_message_of_the_assistant_is_refused_where_nothing_says_what_it_is() -> None:
    with pytest.raises(ValidationError, match=r"`continue_final_message` true if .* or `add_generation_prompt` true"):
        _rendered(PLAIN, user(), {"role": "assistant", "content": "Let me"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "a", "tools": []}, "`tools` needs `messages`"),
        ({"prompt_ids": [1], "continue_final_message": False}, "`continue_final_message` needs `messages`"),
        ({"messages": [user()], "continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
        ({"messages": [user()], "chat_template_kwargs": {"chat_template": "x"}}, "cannot hold `chat_template`"),
        ({"messages": [user()], "chat_template_kwargs": {"tokenize": True}}, "cannot hold `tokenize`"),
        ({"messages": [user([{"type": "image_url", "image_url": {}}])]}, "part 0 has the type 'image_url'; only"),
        ({"messages": [user([{"type": "text", "text": "a"}, "b"])]}, "part 1 has no type; only"),
        ({"messages": [{"role": "user"}]}, "neither `content` nor another key"),
        ({"messages": [user(None, name=None)]}, "neither `content` nor another key"),
    ],
)
def test_a_prompt_that_says_two_things_or_none_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GivenPrompt.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"chat_template_kwargs": {"enable_thinkin": False}}, "chat_template_kwargs"),
    ],
)
def test_what_the_template_never_reads_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ChatPromptError, match="the chat template does not use `") as refused:
        _rendered(PLAIN, user(), **fields)
    assert refused.value.field == field


@pytest.mark.parametrize("template", [PLAIN, PLAIN.replace("m.content", "m.content + ''")])
def test_a_template_that_takes_no_parts_gets_the_only_one_as_text(template: str) -> None:
    assert _rendered(template, user([{"type": "text", "text": "Hi"}])) == _rendered(template, user("Hi"))
    with pytest.raises(ChatPromptError, match="accepts no content parts, and message 0 has 2"):
        _rendered(template, user([{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]))


def test_a_template_that_takes_parts_only_is_not_given_a_text_that_it_leaves_out() -> None:
    assert _rendered(ONLY_PARTS, user([{"type": "text", "text": "Hi"}])) == "Hi"
    with pytest.raises(ChatPromptError, match="leaves out the content of message 0"):
        _rendered(ONLY_PARTS, user("Hi"))


def test_keys_that_are_null_are_not_there() -> None:
    assert _rendered(RICH, user(name=None, tool_call_id=None)) == _rendered(RICH, user())


@pytest.mark.parametrize(
    ("template", "closing"),
    [(PLAIN, ENDS), ("{{ messages[0].content }}", None), ("{{ raise_exception('no') }}", None), (None, None)],
)
def test_what_a_template_closes_a_turn_with_is_told_where_it_can_be(template: str, closing: str | None) -> None:
    assert closing_text(cast("ChatTokenizer", _tokenizer(template))) == closing


def test_without_a_template_messages_are_refused() -> None:
    with pytest.raises(ChatPromptError, match="chat_template is not set"):
        _rendered(cast("str", None), user())
    with pytest.raises(ChatPromptError, match="the model has no chat template"):
        _rendered(cast("str", None), user(), tools=[TOOL])


def test_a_reason_that_repeats_the_messages_is_cut() -> None:
    with pytest.raises(ChatPromptError) as refused:
        _rendered("{{ raise_exception(messages[0].content) }}", user("no " * 10_000))
    assert str(refused.value).startswith("the chat template refuses them: no no")
    assert len(str(refused.value)) < 600


def test_an_error_without_words_is_told_by_its_name() -> None:
    with pytest.raises(ChatPromptError, match="refuses them: MemoryError"):
        _rendered("{{ 'a' * (10 ** 15) }}", user())


def test_a_template_that_loops_is_stopped_and_named() -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ChatPromptError, match=f"refuses them: it takes more than {MAX_STEPS} steps"):
        _rendered(loops, user())


def test_a_template_that_writes_more_than_any_prompt_is_stopped() -> None:
    tokenizer = cast("ChatTokenizer", _tokenizer("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}"))
    with pytest.raises(ChatPromptError, match="writes more than 1000 characters"):
        rendered(tokenizer, GivenPrompt.model_validate({"messages": [user("abc")]}), max_characters=1000)


@pytest.mark.parametrize(
    "prompt",
    [
        {"messages": [user(tool_calls=[[0] * 500] * 300)]},
        {"messages": [user([{"type": "text", "text": "a", "more": {"a": [0] * MAX_TEMPLATE_VALUES}}])]},
        {"messages": [user()], "chat_template_kwargs": {"x": [0] * MAX_TEMPLATE_VALUES}},
    ],
)
def test_messages_of_too_many_values_are_refused(prompt: dict[str, Any]) -> None:
    with pytest.raises(ChatPromptError, match=f"more than {MAX_TEMPLATE_VALUES} values"):
        rendered(cast("ChatTokenizer", _tokenizer(PLAIN)), GivenPrompt.model_validate(prompt))


def test_looking_for_each_message_in_the_text_reads_the_text_once() -> None:
    def seconds(num_characters: int) -> float:
        contents = [f"{index:05} ".ljust(num_characters, "x") for index in range(2048)]
        prompt = GivenPrompt.model_validate({"messages": [user(content) for content in contents]})
        began = thread_time()
        rendered(cast("ChatTokenizer", _tokenizer(PLAIN)), prompt)
        return thread_time() - began

    assert seconds(4000) < 3 * seconds(10) + 0.3
