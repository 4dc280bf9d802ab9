"""The sums of the demo and the study: works are wrong as often as they say, and the model's tokens are characters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean

import pytest

from examples.sums.base_model import character_tokenizer, make_base_model
from examples.sums.works import (
    CHARACTERS,
    DROPPED_CARRY_RATE,
    MAX_WORK_CHARACTERS,
    SLIP_RATE,
    SUMS,
    Worker,
    prompt_of,
    split_sums,
    with_dropped_carries,
    with_random_slips,
    write_questions,
)
from vigor_trainer.data.answers import judge


def share_right(worker: Worker, sums: Sequence[tuple[int, int]]) -> float:
    draw = Random(0)
    return fmean(judge(worker(left, right, draw), str(left + right)).is_correct or False for left, right in sums)


def test_works_are_wrong_as_often_as_they_say() -> None:
    draw = Random(1)
    sums = [(draw.randrange(10, 100), draw.randrange(10, 100)) for _ in range(600)]
    with_carry = [(left, right) for left, right in sums if left % 10 + right % 10 >= 10]
    without = [pair for pair in sums if pair not in with_carry]
    # A slip of ten in the units, and one back in the tens, can meet: a little more than both sums right.
    assert share_right(with_random_slips, sums) == pytest.approx((1 - SLIP_RATE) ** 2, abs=0.06)
    assert share_right(with_dropped_carries, with_carry) == pytest.approx(1 - DROPPED_CARRY_RATE, abs=0.08)
    assert share_right(with_dropped_carries, without) == 1.0


def test_what_follows_a_mistake_is_consistent_with_it() -> None:
    draw, works = Random(2), set[tuple[str, ...]]()
    for _ in range(400):
        units, tens, answer = with_random_slips(47, 38, draw).split("\n")
        assert int(answer) == 10 * int(tens) + int(units) % 10
        works.add((units, tens))
    assert {("15", "8"), ("7", "7")} <= works  # without a carry, the tens are 4 + 3


@pytest.mark.parametrize("worker", [with_random_slips, with_dropped_carries])
def test_the_models_tokens_are_the_characters_of_each_work(worker: Worker) -> None:
    tokenizer, draw = character_tokenizer(), Random(3)
    for left, right in [(10, 10), (99, 99), (47, 38)]:
        text = prompt_of(left, right) + worker(left, right, draw)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text) <= len(prompt_of(left, right)) + MAX_WORK_CHARACTERS
        assert tokenizer.decode(ids) == text
        assert set(text) <= set(CHARACTERS)


def test_held_out_sums_are_none_of_those_that_are_trained_on(tmp_path: Path) -> None:
    trained_on, held_out = split_sums(200)
    assert (len(trained_on), len(held_out)) == (len(SUMS) - 200, 200)
    assert set(trained_on) | set(held_out) == set(SUMS)
    write_questions(tmp_path / "held-out.jsonl", held_out)
    rows = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    assert rows[0] == {"question": prompt_of(*held_out[0]), "answer": str(sum(held_out[0]))}
    assert len(rows) == 200


def test_a_model_is_made_of_the_size_that_is_asked_for_and_tells_its_steps(tmp_path: Path) -> None:
    steps: list[int] = []
    make_base_model(tmp_path, with_random_slips, num_steps=20, width=16, num_layers=1, on_step=steps.append)
    assert steps == list(range(1, 21))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (16, 1)
