"""Held-out completions of a run: what is counted, and which are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.evaluation.examples import evaluated
from tests.trainer.reports.example_runs import example_evaluation, write_evaluations, write_run
from vigor_trainer.monitoring.evaluations import EVALUATION_COMPLETIONS_FILE, EvaluatedCompletion, evaluation_file
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.record_file import RecordFile
from vigor_trainer.reports.examples import held_out_examples
from vigor_trainer.reports.held_out import HeldOut, lead, read_held_out
from vigor_trainer.reports.runs import read_runs


def held_out_of(directory: Path, *steps: int) -> HeldOut:
    [found] = read_held_out(directory, steps).values()
    return found


def test_the_change_is_paired_by_question(tmp_path: Path) -> None:
    held_out = held_out_of(write_evaluations(tmp_path, [0.1, 0.9], [0.3, 1.0]), 0, 4)
    assert held_out.gains() == pytest.approx({0: 0.2, 1: 0.1})
    change = held_out.change()
    assert change is not None
    assert (round(change.low, 3), round(change.high, 3)) == (0.1, 0.2), "not as wide as 0.1 and 0.9 are apart"
    assert lead(held_out, held_out) == Estimate(0.0, 0.0, 0.0)


def test_an_evaluation_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    assert held_out_of(write_evaluations(tmp_path, [0.1], [0.9], [1.0]), 0, 4).steps == [0, 4]


def test_truncated_completions_are_counted(tmp_path: Path) -> None:
    held_out = held_out_of(write_evaluations(tmp_path, [0.5, 0.5], finish_reason="length"), 0)
    assert held_out.truncated_share(0) == Estimate(1.0, 1.0, 1.0)


def test_without_sampled_completions_the_greedy_ones_count(tmp_path: Path) -> None:
    run = write_evaluations(write_run(tmp_path / "run", num_steps=1), [0.5], decoding="greedy")
    [held_out] = [run.held_out for run in read_runs([run])]
    assert held_out is not None
    assert held_out.decoding == "greedy"


def test_the_first_three_questions_are_shown_before_and_after_word_for_word(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=1)
    kept, records = RecordFile(run / EVALUATION_COMPLETIONS_FILE, EvaluatedCompletion), evaluation_file(run)
    for step in (0, 3, 6):
        said = {"step": step, "completion": f" at\n step {step} ", "finish_reason": "length"}
        kept.append(*(evaluated(question, index, **said) for question in range(5) for index in range(2)))
        records.append(example_evaluation(step, Estimate(0.5, 0.4, 0.6)))
    examples = held_out_examples(read_runs([run])[0])
    assert [example["prompt"] for example in examples] == ["What is 0 + 1?", "What is 1 + 1?", "What is 2 + 1?"]
    assert [shown["text"] for shown in examples[0]["completions"]] == [" at\n step 0 ", " at\n step 6 "]
    assert all(shown["truncated"] and shown["correct"] is False for shown in examples[0]["completions"])


def test_before_a_second_evaluation_there_is_one_completion_of_each_question(tmp_path: Path) -> None:
    run = write_evaluations(write_run(tmp_path / "run", num_steps=1), [0.5, 0.5])
    assert [len(each["completions"]) for each in held_out_examples(read_runs([run])[0])] == [1, 1]


def test_a_run_without_held_out_completions_shows_none(tmp_path: Path) -> None:
    [run] = read_runs([write_run(tmp_path / "run", num_steps=1)])
    assert run.held_out is None
    assert held_out_examples(run) == []
