"""Prompts that cannot be trained on are known before the first step."""

from __future__ import annotations

import pytest

from tests.support.tiny_models import tiny_tokenizer
from vigor_trainer.data.prompt_lengths import fitting_prompts, prompt_counter
from vigor_trainer.data.prompts import Prompt
from vigor_trainer.data.tasks import Example, as_dataset
from vigor_trainer.errors import InvalidTaskError


def examples(*prompts: Prompt) -> list[Example]:
    return [Example(f"d.jsonl:{number}", prompt, None) for number, prompt in enumerate(prompts, start=1)]


def count_letters(prompt: Prompt) -> int:
    return len(prompt)


def fitting(given: list[Example], *, skip: bool = False) -> tuple[list[Example], list[str]]:
    told: list[str] = []
    found = fitting_prompts(
        given, count_letters, max_prompt_tokens=4, overlong="skip" if skip else "refuse", report=told.append
    )
    return found, told


def test_prompts_that_fit_stay_in_order() -> None:
    given = examples("a", "four", "bb")
    assert fitting(given) == (given, [])


def test_longer_prompts_are_named_by_their_rows() -> None:
    with pytest.raises(InvalidTaskError, match="2 of 4 prompts are empty or longer than 4 tokens") as caught:
        fitting(examples("a", "12345", "", "b"))
    assert ": d.jsonl:2: 5 tokens; d.jsonl:3: no token; give a smaller --max_completion_length" in str(caught.value)


def test_a_long_list_of_rows_is_cut() -> None:
    with pytest.raises(InvalidTaskError, match=r"d\.jsonl:10: 5 tokens; and 20 more; give"):
        fitting(examples(*["12345"] * 30))


def test_who_wants_to_skip_them_is_told_of_each() -> None:
    given = examples("a", "12345", "b")
    assert fitting(given, skip=True) == (
        [given[0], given[2]],
        ["skipped 1 of 3 prompts that do not fit: d.jsonl:2: 5 tokens"],
    )


def test_a_task_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="1 of 1 prompts"):
        fitting(examples("12345"), skip=True)


@pytest.mark.parametrize("prompt", ["What is 1 + 1?", [{"role": "user", "content": "What is 1 + 1?"}]])
def test_tokens_are_those_that_trl_generates_from(prompt: Prompt) -> None:
    tokenizer = tiny_tokenizer()
    if isinstance(prompt, str):
        ids = tokenizer(text=[prompt])["input_ids"][0]
    else:
        rendered = tokenizer.apply_chat_template([prompt], add_generation_prompt=True, tokenize=True, return_dict=True)
        ids = rendered["input_ids"][0]  # pyright: ignore[reportArgumentType, reportCallIssue] - a dictionary
    assert prompt_counter(tokenizer, {})(prompt) == len(ids)


def test_a_row_that_the_chat_template_refuses_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') if messages[1:] else messages[0].content }}"
    said = {"role": "user", "content": "a"}
    with pytest.raises(InvalidTaskError, match=r"d\.jsonl:2: the tokenizer's chat template .*: roles must alternate"):
        fitting_prompts(
            examples([said], [said, said]),
            prompt_counter(tokenizer, {}),
            max_prompt_tokens=9,
            overlong="skip",
            report=print,
        )


def test_messages_come_back_as_they_were_written() -> None:
    call = {"function": {"name": "weather", "arguments": {"unit": "C", "day": None}}}
    prompts: list[Prompt] = [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": "a", "name": "b"}, {"role": "assistant", "tool_calls": [call]}],
    ]
    assert as_dataset(examples(*prompts))["prompt"] == prompts
