"""What is reported of a round."""

from __future__ import annotations

from decimal import Decimal
from math import isclose

import pytest

from vigor_trainer.monitoring.statistics import correlation_within_groups, is_correct, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7.", "7"),
        ("The answer is -4", "-4"),
        ("10-4", "4"),
        ("so 3 - 5 = −2", "-2"),
        ("#### 1,234", "1234"),
        ("about 3.50 dollars", "3.5"),
        (r"\boxed{-12}", "-12"),
        ("x2", "2"),
    ],
)
def test_the_last_number_of_a_text_is_found(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_a_text_without_a_number_has_none() -> None:
    assert last_number("no idea") is None


def test_an_answer_counts_when_the_last_numbers_agree() -> None:
    assert is_correct("3 + 4 = 7", "7")
    assert is_correct("It costs $72.00", "48 + 24 = 72\n#### 72")
    assert not is_correct("7 is wrong, it is 8", "7")
    assert not is_correct("no idea", "7")


def test_an_answer_in_words_must_be_the_same_words() -> None:
    assert is_correct(" Paris\n", "paris")
    assert not is_correct("It is Paris", "paris")


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
