"""Numbers of an evaluation, each worked out by hand."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.trainer.evaluation.examples import evaluated
from vigor_trainer.evaluation.metrics import evaluation_metrics, logged_metrics

# Two questions: of the first two of four samples are correct, of the second none; greedy solves the first.
SAMPLED = [
    evaluated(0, 0, is_correct=True, is_boxed=True),
    evaluated(0, 1, is_correct=True),
    evaluated(0, 2, finish_reason="length", num_tokens=9, completion_ids=[1] * 9, mean_entropy=1.5),
    evaluated(0, 3),
    *(evaluated(1, index) for index in range(4)),
]
GREEDY = [evaluated(question, decoding="greedy", is_correct=question == 0) for question in range(2)]
METRICS = evaluation_metrics([*GREEDY, *SAMPLED])


def test_accuracy_and_pass_at_k_are_means_over_questions() -> None:
    assert METRICS.num_questions == METRICS.num_labelled == 2
    assert METRICS.greedy.accuracy is not None
    assert METRICS.greedy.accuracy.value == 0.5
    assert METRICS.sampled is not None
    assert METRICS.sampled.accuracy is not None
    assert METRICS.sampled.accuracy.value == 0.25
    assert {k: estimate.value for k, estimate in METRICS.pass_at_k.items()} == pytest.approx(
        {"1": 0.25, "2": (1 - 1 / 6) / 2, "3": 0.5, "4": 0.5}
    )


def test_lengths_repetition_and_entropy_are_those_of_the_completions() -> None:
    assert METRICS.sampled is not None
    found = {name: estimate["value"] for name, estimate in asdict(METRICS.sampled).items()}
    assert found == pytest.approx(
        {
            "accuracy": 0.25,
            "format_rate": 1 / 8,
            "mean_length": (7 * 3 + 9) / 8,
            "mean_terminated_length": 3,
            "clipped_share": 1 / 8,
            "repetition": (6 / 7) / 8,
            "mean_entropy": (7 * 3 * 0.5 + 9 * 1.5) / (7 * 3 + 9),
        }
    )


def test_questions_without_an_answer_have_everything_but_accuracy() -> None:
    unlabelled = evaluated(2, decoding="greedy", is_correct=None, answer=None)
    metrics = evaluation_metrics([*GREEDY, unlabelled])
    assert (metrics.num_questions, metrics.num_labelled, metrics.sampled) == (3, 2, None)
    assert metrics.greedy.accuracy == METRICS.greedy.accuracy
    assert evaluation_metrics([unlabelled]).greedy.accuracy is None


def test_a_run_logs_values_under_names_that_begin_with_eval() -> None:
    logged = logged_metrics(METRICS)
    assert logged["eval_greedy_accuracy"] == 0.5
    assert logged["eval_sampled_accuracy"] == logged["eval_pass_at_1"] == 0.25
    assert len(logged) == 7 + 7 + 4
    only_greedy = logged_metrics(evaluation_metrics([evaluated(0, decoding="greedy", finish_reason="length")]))
    assert "eval_greedy_mean_terminated_length" not in only_greedy  # none ended by itself
