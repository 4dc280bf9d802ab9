"""Ranks and rewards, checked against their definitions."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_client import rank_rewards, ranks

VALUES = st.lists(st.none() | st.sampled_from([0.0, 1.0, 2.0, 3.5]) | st.floats(0, 100), min_size=1, max_size=12)


def mean_rank(values: list[float | None], index: int) -> float:
    """By the definition: how many are strictly better, plus half of those that are equal."""

    def key(value: float | None) -> tuple[bool, float]:
        return (value is None, 0.0 if value is None else value)

    better = sum(key(value) < key(values[index]) for value in values)
    equal = sum(key(value) == key(values[index]) for value in values)
    return better + (equal + 1) / 2


@given(VALUES)
def test_average_ranks_are_the_mean_of_the_places_that_equals_share(values: list[float | None]) -> None:
    assert ranks(values) == [mean_rank(values, index) for index in range(len(values))]


@given(VALUES)
def test_ordinal_ranks_break_ties_by_index(values: list[float | None]) -> None:
    given_ranks = ranks(values, ties="ordinal")
    scored = sorted((value, index) for index, value in enumerate(values) if value is not None)
    assert [given_ranks[index] for _, index in scored] == [place + 1 for place in range(len(scored))]


@given(VALUES)
def test_ranks_sum_to_what_places_sum_to_and_rewards_to_zero(values: list[float | None]) -> None:
    given_ranks = ranks(values)
    assert sum(given_ranks) == len(values) * (len(values) + 1) / 2
    assert sum(rank_rewards(given_ranks)) == pytest.approx(0.0, abs=1e-9)


def test_a_group_of_one_gets_zero() -> None:
    assert rank_rewards(ranks([4.0])) == [0.0]
    assert rank_rewards(ranks([None])) == [0.0]


def test_the_smallest_norm_gets_one_and_the_largest_minus_one() -> None:
    rewards = rank_rewards(ranks([3.0, 1.0, 2.0]))
    assert rewards == [-1.0, 1.0, 0.0]


def test_completions_without_a_value_share_the_last_ranks() -> None:
    assert ranks([None, 5.0, None, 1.0]) == [3.5, 2.0, 3.5, 1.0]


def test_an_empty_group_has_no_ranks() -> None:
    assert ranks([]) == []
    assert rank_rewards([]) == []


@given(st.lists(st.floats(0, 100), min_size=2, max_size=12, unique=True))
def test_rewards_fall_as_values_rise(values: list[float]) -> None:
    by_value = [reward for _, reward in sorted(zip(values, rank_rewards(ranks(values)), strict=True))]
    assert all(first > second for first, second in pairwise(by_value))
