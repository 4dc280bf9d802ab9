"""What is reported of groups of completions."""

from __future__ import annotations

from itertools import combinations
from math import isclose

import pytest

from vigor_trainer.monitoring.statistics import correlation_within_groups, ordered_pairs, pass_at_k, repetition


def test_correlation_sees_only_what_varies_within_a_group() -> None:
    short_wins = ([1.0, -1.0], [4.0, 9.0])
    short_wins_again = ([1.0, -1.0], [104.0, 109.0])
    correlation = correlation_within_groups([short_wins, short_wins_again])
    assert correlation is not None
    assert isclose(correlation, -1.0)


def test_there_is_no_correlation_without_variation() -> None:
    assert correlation_within_groups([([0.0, 0.0], [4.0, 9.0])]) is None
    assert correlation_within_groups([([1.0, -1.0], [5.0, 5.0])]) is None
    assert correlation_within_groups([]) is None


def test_pairs_of_a_correct_and_a_wrong_completion_are_counted() -> None:
    values, is_correct = [3.0, 1.0, 2.0, 2.0], [True, False, True, False]
    assert ordered_pairs(values, is_correct) == (3.5, 4)  # 3 > 1, 3 > 2, 2 > 1, and 2 = 2 for a half
    assert ordered_pairs([1.0, 2.0], [True, True]) == (0, 0)


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(5, 2, 1), (5, 2, 3), (5, 2, 4), (4, 0, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_all_choices_with_a_correct_one(num_samples: int, num_correct: int, k: int) -> None:
    samples = [index < num_correct for index in range(num_samples)]
    choices = list(combinations(samples, k))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_more_than_was_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 5: give 1 to 4"):
        pass_at_k(4, 1, 5)


def test_repetition_is_the_share_of_tokens_in_threes_that_stood_there_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([7] * 12) == pytest.approx(9 / 10)
    assert repetition([1, 2]) == 0.0
