"""Completions from a file: what a line may have, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.trainer.evaluation.examples import evaluated
from tests.trainer.example_records import example_completion
from vigor_trainer.audit.ready_completions import read_ready
from vigor_trainer.errors import InvalidTaskError


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_lines_of_the_same_prompt_are_one_group_and_are_judged(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1 + 1?", "completion": "It is 2.", "answer": 2},
        {"prompt": "1 + 2?", "completion": r"\boxed{4}", "answer": "3"},
        {"prompt": "1 + 1?", "completion": "It is 3.", "answer": "2", "decoding": "greedy"},
        {"prompt": "1 + 1?", "completion": "2", "completion_ids": [5, 6], "answer": "2", "finish_reason": "length"},
    ]
    found = read_ready(written(tmp_path / "ready.jsonl", *rows), None)
    assert [(each.question, each.decoding, each.index) for each in found] == [
        (0, "sampled", 0),
        (1, "sampled", 0),
        (0, "greedy", 0),
        (0, "sampled", 1),
    ]
    assert [each.is_correct for each in found] == [True, False, False, True]
    assert [each.is_boxed for each in found] == [False, True, False, False]
    assert (found[3].completion_ids, found[3].finish_reason) == ([5, 6], "length")


def test_the_completions_of_an_evaluation_are_read_as_they_were_written(tmp_path: Path) -> None:
    completions = [
        evaluated(0, 0, completion="It is 1", final_answer="1", is_correct=True, mean_entropy=None, prompt_ids=[3, 4]),
        evaluated(0, 1, completion="no", mean_entropy=None),
        evaluated(1, 0, decoding="greedy", completion="no", mean_entropy=None),
    ]
    assert read_ready(written(tmp_path / "file.jsonl", *map(asdict, completions)), None) == completions


def test_the_completions_of_a_run_are_grouped_by_step_and_keep_their_labels(tmp_path: Path) -> None:
    rows = [asdict(example_completion(step, index=index)) for step in range(2) for index in range(2)]
    found = read_ready(written(tmp_path / "completions.jsonl", *rows), None)
    assert [(each.question, each.index, each.is_correct) for each in found] == [
        (0, 0, True),
        (0, 1, True),
        (1, 0, True),
        (1, 1, True),
    ]


def test_ids_alone_are_decoded_by_the_tokenizer_that_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "ids.jsonl", {"prompt": "1 + 1?", "completion_ids": [50], "answer": "2"})
    (found,) = read_ready(path, lambda ids: chr(ids[0]))
    assert (found.completion, found.is_correct) == ("2", True)
    with pytest.raises(InvalidTaskError, match=r"ids.jsonl:1: has `completion_ids` alone: give --model"):
        read_ready(path, None)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("nonsense", ":1: this is not JSON"),
        ({"completion": "2"}, ":1: `prompt`: is missing"),
        ({"prompt": "", "completion": "2"}, ":1: `prompt` must be text, or messages"),
        ({"prompt": "1"}, ":1: has neither `completion` nor `completion_ids`"),
        (
            {"prompt": "1", "completion": "2", "decoding": "beam"},
            ":1: `decoding`: is 'beam'; give 'greedy' or 'sampled'",
        ),
        ({"prompt": "1", "completion_ids": ["a"]}, ":1: `completion_ids` item 0: "),
    ],
)
def test_what_is_not_understood_is_named_by_its_line(row: object, complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path / "ready.jsonl", row)
    with pytest.raises(InvalidTaskError) as refused:
        read_ready(path, None)
    assert f"{path}{complaint}" in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTaskError, match=r"nowhere.jsonl: "):
        read_ready(tmp_path / "nowhere.jsonl", None)
