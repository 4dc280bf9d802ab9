"""Figures of groups, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import pytest

from vigor_client.ranking import rank_rewards, ranks
from vigor_client.schemas.scoring import CompletionScore, CompletionStatus
from vigor_service.observability.reward_health import group_health, num_tied, rank_correlation, relative_spread


def scored(
    norms: Sequence[float], lengths: Sequence[int], statuses: Sequence[CompletionStatus] | None = None
) -> list[CompletionScore]:
    """A group as it is answered; completions that are not ``ok`` have no norm."""
    known: Sequence[CompletionStatus] = statuses or ["ok" for _ in norms]
    present = [norm if status == "ok" else None for norm, status in zip(norms, known, strict=True)]
    group_ranks = ranks(present)
    rows = zip(known, present, lengths, group_ranks, rank_rewards(group_ranks), strict=True)
    return [
        CompletionScore(
            status=status,
            num_tokens=length,
            grad_norm=norm,
            scaled_grad_norm=norm,
            rank=rank,
            reward=reward,
            mean_logprob=None,
            mean_entropy=None,
            self_certainty=None,
        )
        for status, norm, length, rank, reward in rows
    ]


def test_a_group_of_four() -> None:
    health = group_health(["a", "b", "c", "d"], scored([1.0, 2.0, 3.0, 2.0], [10, 40, 30, 20]))
    assert health.statuses == {"ok": 4}
    assert health.scaled_norms == [1.0, 2.0, 3.0, 2.0]
    assert (health.num_tied, health.num_duplicates) == (2, 0)
    # Deviations -1, 0, 1, 0 from the mean of 2.
    assert health.norm_spread == pytest.approx(sqrt(2 / 4) / 2)
    # Ranks of rewards 4, 2.5, 1, 2.5 and of lengths 1, 4, 3, 2: deviations 1.5, 0, -1.5, 0 and -1.5, 1.5, 0.5, -0.5.
    assert health.length_correlation == pytest.approx((-2.25 - 0.75) / sqrt(4.5 * 5))


def test_a_reward_that_falls_with_length_has_correlation_minus_one() -> None:
    health = group_health(["a", "b", "c"], scored([1.0, 10.0, 11.0], [5, 6, 700]))
    assert health.length_correlation == -1.0


def test_a_group_of_one_has_no_spread_and_no_correlation() -> None:
    health = group_health(["a"], scored([3.0], [5]))
    assert (health.norm_spread, health.length_correlation, health.num_tied) == (None, None, 0)


def test_equal_lengths_have_no_correlation_but_a_spread() -> None:
    health = group_health(["a", "b"], scored([1.0, 3.0], [5, 5]))
    assert (health.norm_spread, health.length_correlation) == (0.5, None)


def test_a_completion_that_comes_three_times_is_two_duplicates_and_three_ties() -> None:
    health = group_health(["a", "a", "a", "b"], scored([2.0, 2.0, 2.0, 1.0], [5, 5, 5, 4]))
    assert (health.num_duplicates, health.num_tied) == (2, 3)


def test_completions_without_a_norm_are_counted_by_status_and_nothing_else() -> None:
    scores = scored([1.0, 0.0, 0.0, 3.0], [4, 0, 9, 2], ["ok", "empty", "nonfinite", "ok"])
    health = group_health(["a", "b", "c", "d"], scores)
    assert health.statuses == {"ok": 2, "empty": 1, "nonfinite": 1}
    assert health.scaled_norms == [1.0, 3.0]
    assert health.num_tied == 0
    assert health.length_correlation == 1.0


def test_a_group_without_any_norm_has_no_figure() -> None:
    health = group_health(["a", "b"], scored([0.0, 0.0], [0, 0], ["empty", "empty"]))
    assert (health.scaled_norms, health.norm_spread, health.length_correlation) == ([], None, None)


def test_spread_of_norms_that_are_all_zero_is_undefined_and_of_huge_ones_finite() -> None:
    assert relative_spread([0.0, 0.0]) is None
    assert relative_spread([1e300, 3e300]) == pytest.approx(0.5)
    assert relative_spread([1e-300, 3e-300]) == pytest.approx(0.5)


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [1, 1, 1]), ([1], [2]), ([], [])])
def test_what_does_not_vary_has_no_correlation(x: list[float], y: list[float]) -> None:
    assert rank_correlation(x, y) is None


def test_values_that_occur_more_than_once_are_tied() -> None:
    assert num_tied([1.0, 2.0, 2.0, 3.0, 3.0, 3.0]) == 5
