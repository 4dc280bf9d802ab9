"""What is reported of a round."""

from __future__ import annotations

from math import isclose

from vigor_trainer.monitoring.statistics import correlation_within_groups


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
