"""The health of a round, on planted completions."""

from __future__ import annotations

import pytest

from tests.trainer.example_records import example_completion
from vigor_trainer.monitoring.completions import CompletionRecord
from vigor_trainer.monitoring.health import round_health

A, B, LOOP = [1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [7] * 8


def completion(
    ids: list[int], *, group: int = 0, reward: float | None = 0.0, norm: float | None = 1.0, right: bool | None = None
) -> CompletionRecord:
    return example_completion(
        0,
        group=group,
        completion_ids=ids,
        rewards={} if reward is None else {"vigor": reward, "random": 0.0},
        scaled_grad_norm=norm,
        is_correct=right,
    )


def test_duplicates_count_within_their_group() -> None:
    assert round_health([completion(A), completion(A), completion(B), completion(A, group=1)]).duplicate_share == 0.5


def test_ties_are_of_completions_that_differ() -> None:
    same = round_health([completion(A, reward=1.0), completion(A, reward=1.0), completion(B, reward=0.0)])
    assert same.tie_share == 0.0
    tied = round_health([completion(A, reward=1.0), completion(B, reward=1.0), completion(LOOP, reward=0.0)])
    assert tied.tie_share == pytest.approx(2 / 3)
    assert round_health([completion(A, reward=None)]).tie_share is None


def test_repetition_and_the_share_that_loops() -> None:
    health = round_health([completion(A), completion(LOOP)])
    assert health.repetition == pytest.approx((0 + 5 / 6) / 2)
    assert health.looping_share == 0.5


def test_the_spread_of_norms_is_their_range_over_their_mean_in_each_group() -> None:
    norms = [completion(A, norm=1.0), completion(B, norm=3.0), completion(LOOP, norm=None)]
    assert round_health([*norms, completion(A, group=1, norm=5.0)]).norm_spread == pytest.approx((1.0 + 0.0) / 2)
    assert round_health([completion(A, norm=None)]).norm_spread is None


def test_the_best_quarter_is_taken_from_each_group_with_ties() -> None:
    first = [completion(A, reward=float(index), right=index == 7) for index in range(8)]
    assert round_health(first).top_quarter_accuracy == 0.5
    second = [completion(A, group=1, reward=1.0, right=index < 3) for index in range(4)]
    assert round_health(second).top_quarter_accuracy == 0.75
    assert round_health([completion(A, right=None)]).top_quarter_accuracy is None
    assert round_health([completion(A, reward=None, right=True)]).top_quarter_accuracy is None
