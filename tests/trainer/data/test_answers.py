"""Which answer a completion gives, and whether it is the one that was asked for."""

from __future__ import annotations

from decimal import Decimal

import pytest

from vigor_trainer.data.answers import final_answer, is_boxed, is_correct, judge, last_number, majority


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


@pytest.mark.parametrize(
    ("completion", "answer", "correct"),
    [
        ("3 + 4 = 7", "7", True),
        ("It costs $72.00", "48 + 24 = 72\n#### 72", True),
        ("7 is wrong, it is 8", "7", False),
        ("no idea", "7", False),
        (r"so \boxed{\frac{1}{2}}", "0.5", True),
        (r"so \boxed{\frac{1}{2}}", r"\frac{2}{4}", True),
        (r"it is \boxed{8}, I checked 7 times", "7", False),  # what is boxed counts
        (r"it is \boxed{7}, I checked 8 times", "7", True),
        ("so 3 - 5 = −2", "-2", True),
        ("1/3", "3", False),
        (r"\boxed{x^2 + 2x + 1}", "$(x+1)^2$", True),
        ("12,345 in all", "12345", True),
        ("x2", "2", True),  # no expression to math-verify
    ],
)
def test_an_answer_is_judged_as_a_mathematician_would(completion: str, answer: str, correct: bool) -> None:
    assert is_correct(completion, answer) is correct


def test_an_answer_in_words_must_be_the_same_words() -> None:
    assert is_correct(" Paris\n", "paris")
    assert not is_correct("It is Paris", "paris")


def test_the_final_answer_is_what_the_completion_ends_with_or_boxes() -> None:
    assert final_answer("3 + 4 = 7, done") == "7"
    assert final_answer(r"\boxed{\frac{1}{2}} after 3 tries") == r"\frac{1}{2}"
    assert final_answer("no idea") is None


@pytest.mark.parametrize(
    ("text", "boxed"),
    [(r"\boxed{7}", True), (r"\boxed{\frac{1}{2}} ok", True), (r"\boxed{\frac{1}{2}", False), ("7", False)],
)
def test_a_box_counts_once_it_is_closed(text: str, boxed: bool) -> None:
    assert is_boxed(text) is boxed


def test_the_majority_counts_equal_answers_in_any_spelling() -> None:
    assert majority(["7", "0.5", r"\frac{1}{2}", None, None, None]) == "0.5"
    assert majority(["8", "7", "7.0", "8"]) == "8"  # as many: the earlier one
    assert majority([None, None]) is None
    assert majority([]) is None


def test_without_an_answer_nothing_is_correct_or_wrong() -> None:
    assert judge("3 + 4 = 7", None).is_correct is None
