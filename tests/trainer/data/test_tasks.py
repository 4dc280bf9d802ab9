"""Datasets, and the refusal of what is not understood."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from vigor_trainer.data.tasks import TaskSource, load_task
from vigor_trainer.errors import InvalidTaskError, UnsupportedSettingError


def write_lines(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_one_digit_addition_has_every_pair_once() -> None:
    task = load_task(TaskSource("addition"), has_chat_template=False)
    assert len(task) == len(set(task["prompt"])) == 100
    assert {"prompt": "What is 3 + 4?", "answer": "7"} in task.to_list()


def test_prompts_are_messages_where_the_tokenizer_has_a_chat_template() -> None:
    task = load_task(TaskSource("addition"), has_chat_template=True)
    assert task[0]["prompt"] == [{"role": "user", "content": "What is 0 + 0?"}]


def test_a_jsonl_file_may_say_prompt_or_question(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "task.jsonl", {"prompt": "a\u2028b", "id": 1}, "", {"question": "c", "answer": 3})
    task = load_task(TaskSource(name), has_chat_template=False)
    assert task.to_list() == [{"prompt": "a\u2028b", "answer": None}, {"prompt": "c", "answer": "3"}]


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "task.jsonl", {"problem": "1+1", "solution": "2", "question": "not this"})
    source = TaskSource(name, prompt_column="problem", answer_column="solution")
    assert load_task(source, has_chat_template=False).to_list() == [{"prompt": "1+1", "answer": "2"}]


def test_a_prompt_of_messages_is_kept_as_it_is(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1"}]
    name = write_lines(tmp_path / "task.jsonl", {"prompt": messages})
    assert load_task(TaskSource(name), has_chat_template=True)[0]["prompt"] == messages
    with pytest.raises(InvalidTaskError, match=r"task.jsonl:1: the prompt is a list of messages, but .* no chat"):
        load_task(TaskSource(name), has_chat_template=False)


def test_a_row_may_have_tests_instead_of_an_answer(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "task.jsonl", {"prompt": "a", "checks": ["assert f() == 1"]}, {"prompt": "b"})
    task = load_task(TaskSource(name), has_chat_template=False)
    assert task.column_names == ["prompt", "answer"]
    with pytest.raises(InvalidTaskError, match=r"task.jsonl:2: no column `checks`"):
        load_task(TaskSource(name, tests_column="checks"), has_chat_template=False)
    rows = ({"prompt": "a", "tests": ["assert f() == 1"]}, {"prompt": "b", "tests": None, "answer": 2})
    task = load_task(TaskSource(write_lines(tmp_path / "task.jsonl", *rows)), has_chat_template=False)
    assert task["tests"] == ['["assert f() == 1"]', None]
    name = write_lines(tmp_path / "task.jsonl", {"prompt": "a", "tests": [1]})
    with pytest.raises(InvalidTaskError, match=r"task.jsonl:1: `tests` must be Python statements, or objects with"):
        load_task(TaskSource(name), has_chat_template=False)


def test_a_system_prompt_comes_before_every_prompt(tmp_path: Path) -> None:
    source = TaskSource("addition", system_prompt="Add.")
    assert load_task(source, has_chat_template=True)[0]["prompt"] == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "What is 0 + 0?"},
    ]
    with pytest.raises(UnsupportedSettingError, match="--system_prompt: the tokenizer has no chat template"):
        load_task(source, has_chat_template=False)
    messages = [{"role": "system", "content": "Subtract."}, {"role": "user", "content": "1-1"}]
    name = write_lines(tmp_path / "task.jsonl", {"prompt": messages})
    with pytest.raises(InvalidTaskError, match=r"task.jsonl:1: the prompt has a system message of its own"):
        load_task(TaskSource(name, system_prompt="Add."), has_chat_template=True)


def test_messages_may_have_what_templates_take_and_null_is_not_there(tmp_path: Path) -> None:
    call = {"function": {"name": "weather", "arguments": {"unit": "C"}}}
    said = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "22 C", "name": "weather"},
    ]
    name = write_lines(tmp_path / "task.jsonl", {"prompt": said})
    assert load_task(TaskSource(name), has_chat_template=True)[0]["prompt"] == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "22 C", "name": "weather"},
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "not JSON: .* at column 2"),
        ("[1]", "must be a JSON object, not list"),
        ({"text": "a"}, r"needs exactly one of `prompt` or `question`, has \['text'\]"),
        ({"prompt": "a", "question": "b"}, "needs exactly one of"),
        ({"prompt": "  "}, "`prompt` must be text, or messages"),
        ({"prompt": 3}, "`prompt` must be text, or messages"),
        ({"prompt": []}, "`prompt` must be text, or messages"),
        ({"prompt": [{"role": "user"}]}, "`prompt` must be text, or messages"),
        (
            {"prompt": [{"role": "user", "content": 3}]},
            "`prompt` must be text, or messages with .*: message 0: `content`",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "`prompt` must be text, .* message 0: `content`: part 0 has the type 'image'",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]},
            "`prompt` message 0 has 2 parts: write its `content` as one text",
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "7"}]},
            "`prompt` ends with an assistant message, .*: remove it",
        ),
        ({"prompt": "a", "tools": [{"name": "f"}]}, "remove the column `tools`, which TRL's GRPO does not"),
        ('{"prompt": "nice \\ud83d"}', r"`prompt` character 5 is half of a surrogate pair \(\\ud83d\)"),
        ('{"prompt": [{"role": "user", "content": "\\ud83d"}]}', "`prompt` must .*character 0 is half of a surrogate"),
        ('{"prompt": "a", "answer": "\\ud83d"}', "`answer` character 0 is half of a surrogate pair"),
        ({"prompt": "a", "answer": [1]}, "`answer` must be text or a number, not list"),
        ({"prompt": "a", "answer": True}, "`answer` must be text or a number, not bool"),
        ('{"prompt": "a", "answer": NaN}', "`answer` must be text or a number, not float"),
        ("[" * 100_000, "not JSON: maximum recursion depth"),
        ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: object, complaint: str) -> None:
    name = write_lines(tmp_path / "task.jsonl", {"prompt": "good"}, line)
    with pytest.raises(InvalidTaskError, match=rf"task.jsonl:2: {complaint}"):
        load_task(TaskSource(name), has_chat_template=True)


def test_a_named_answer_column_must_be_there(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "task.jsonl", {"prompt": "a", "anwser": "b"})
    with pytest.raises(InvalidTaskError, match="no column `answer`"):
        load_task(TaskSource(name, answer_column="answer"), has_chat_template=False)


def test_a_file_that_is_missing_empty_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, complaint in [
        ("missing", "No such file"),
        ("empty", "contains no prompts"),
        ("binary", "binary.jsonl: looks like utf-16"),
    ]:
        with pytest.raises(InvalidTaskError, match=complaint):
            load_task(TaskSource(str(tmp_path / f"{name}.jsonl")), has_chat_template=False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_may_be_in_any_encoding_and_compressed(encoding: str, tmp_path: Path) -> None:
    content = '{"prompt": "題", "answer": "4"}\r\n{"prompt": "b"}\r\n'.encode(encoding)
    (tmp_path / "task.jsonl").write_bytes(content)
    (tmp_path / "task.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("task.jsonl", "task.jsonl.gz"):
        task = load_task(TaskSource(str(tmp_path / name)), has_chat_template=False)
        assert task.to_list() == [{"prompt": "題", "answer": "4"}, {"prompt": "b", "answer": None}]


def test_a_file_that_is_not_unicode_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_bytes('{"prompt": "a"}\n{"prompt": "é"}\n'.encode("latin-1"))
    with pytest.raises(InvalidTaskError, match=r"task\.jsonl:2: not JSON: 'utf-8' codec can't decode byte 0xe9"):
        load_task(TaskSource(str(tmp_path / "task.jsonl")), has_chat_template=False)


def test_plain_json_is_refused_with_advice() -> None:
    with pytest.raises(InvalidTaskError, match=r"give a \.jsonl file"):
        load_task(TaskSource("task.json"), has_chat_template=False)


def test_a_reasoning_gym_task_is_generated_to_size_and_seed() -> None:
    source = TaskSource("reasoning-gym:basic_arithmetic", size=5, seed=7)
    task = load_task(source, has_chat_template=False)
    assert len(task) == 5
    assert task.to_list() == load_task(source, has_chat_template=False).to_list()
    assert all(row["answer"] for row in task.to_list())


def test_an_unknown_reasoning_gym_task_is_named() -> None:
    with pytest.raises(InvalidTaskError, match=r"reasoning-gym:nope: .*'nope'"):
        load_task(TaskSource("reasoning-gym:nope"), has_chat_template=False)


def test_a_hub_dataset_is_read_by_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question,answer\nWhat is 1 + 1?,2\n")
    task = load_task(TaskSource(str(tmp_path)), has_chat_template=False)
    assert task.to_list() == [{"prompt": "What is 1 + 1?", "answer": "2"}]
    with pytest.raises(InvalidTaskError, match="split nope"):
        load_task(TaskSource(str(tmp_path), split="nope"), has_chat_template=False)


def test_a_dataset_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTaskError, match=r"dataset '.*nowhere' .* did not load"):
        load_task(TaskSource(str(tmp_path / "nowhere")), has_chat_template=False)
