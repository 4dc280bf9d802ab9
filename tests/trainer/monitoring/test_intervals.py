"""Bootstrap intervals: they hold the truth as often as they say, and resample questions, not completions."""

from __future__ import annotations

import random

import pytest

from vigor_trainer.monitoring.intervals import mean, ratio


def test_an_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    held = 0
    for trial in range(200):
        found = mean([float(draw.random() < 0.3) for _ in range(100)], seed=trial)
        assert found is not None
        held += found.low <= 0.3 <= found.high
    assert 0.90 < held / 200 < 0.99


def test_completions_of_one_question_are_drawn_together() -> None:
    questions = [float(index % 2) * 8 for index in range(20)]  # eight completions each, all right or all wrong
    together, alone = ratio(questions, [8.0] * 20), mean([1.0, 0.0] * 80)
    assert together is not None
    assert alone is not None
    assert together.value == alone.value == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_what_has_no_denominator_has_no_estimate() -> None:
    assert mean([]) is None
    assert mean([None, None]) is None
    assert ratio([0.0, 0.0], [0.0, 0.0]) is None
    rare = ratio([1.0, *[0.0] * 3], [2.0, *[0.0] * 3])  # most resamples lack the only question that counts
    assert rare is not None
    assert (rare.value, rare.low, rare.high) == (0.5, 0.5, 0.5)


def test_an_estimate_is_the_same_each_time() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    assert mean(values) == mean(values)
    assert str(mean([1.0, 1.0])) == "1.000 [1.000, 1.000]"


def test_numbers_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 numerators for 1 denominators"):
        ratio([1.0, 2.0], [1.0])
