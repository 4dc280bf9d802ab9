"""Rewards of one group, each compared with what its definition says."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest

from vigor_client import CompletionScore, rank_rewards, ranks
from vigor_trainer.config.arguments import BUILTINS
from vigor_trainer.data.answers import Judged
from vigor_trainer.rewards.rules import RuleOptions, ScoredGroup, needed_parts, rewards_of

NORMS, LENGTHS = [4.0, 1.0, 2.5, 3.0], [1, 16, 4, 9]


def score(norm: float | None = 1.0, length: int = 4, **numbers: Any) -> CompletionScore:  # noqa: ANN401 - fields
    given: dict[str, Any] = {
        "status": "ok" if norm is not None else "empty",
        "num_tokens": length,
        "grad_norm": norm,
        "scaled_grad_norm": None if norm is None else norm * sqrt(length),
        "rank": 1.0,
        "reward": 0.0,
        "mean_logprob": None if norm is None else -norm,
        "mean_entropy": norm,
        "self_certainty": None if norm is None else -norm,
    }
    return CompletionScore(**given | numbers)


def group(*scores: CompletionScore, judged: list[Judged] | None = None, seed: str = "s") -> ScoredGroup:
    return ScoredGroup(scores, judged or [Judged(None, None, is_boxed=False)] * len(scores), seed)


FOUR = group(*map(score, NORMS, LENGTHS))


def test_vigor_ranks_the_scaled_norms_as_the_service_does() -> None:
    scaled = [norm * sqrt(length) for norm, length in zip(NORMS, LENGTHS, strict=True)]
    assert rewards_of("vigor", FOUR, RuleOptions()) == rank_rewards(ranks(scaled))


def test_without_sqrt_length_the_norms_themselves_are_ranked() -> None:
    assert rewards_of("vigor", FOUR, RuleOptions(sqrt_length=False)) == rank_rewards(ranks(NORMS))


def test_without_ranks_the_reward_is_the_negative_norm_and_what_has_none_is_as_bad_as_the_worst() -> None:
    options = RuleOptions(rank=False, sqrt_length=False)
    assert rewards_of("vigor", group(score(2.0), score(None), score(3.0)), options) == [-2, -3, -3]
    assert rewards_of("vigor", group(score(None), score(None)), options) == [0, 0]


@pytest.mark.parametrize(("min_spread", "is_counted"), [(0.0, True), (0.09, True), (0.11, False)])
def test_a_group_whose_norms_hardly_differ_gets_nothing(min_spread: float, is_counted: bool) -> None:
    close = group(score(0.95), score(1.05))
    assert rewards_of("vigor", close, RuleOptions(min_spread=min_spread)) == ([1, -1] if is_counted else [0, 0])


@pytest.mark.parametrize(
    ("name", "field", "large_is_good"),
    [
        ("self_certainty", "self_certainty", True),
        ("entropy", "mean_entropy", False),
        ("logprob", "mean_logprob", True),
        ("p_norm", "p_norm", True),
        ("trajectory_logprob", "sum_logprob", True),
    ],
)
def test_a_signal_is_ranked_in_the_direction_of_confidence(name: Any, field: str, large_is_good: bool) -> None:  # noqa: ANN401
    values = [0.3, 0.1, 0.7, 0.2]
    scores = [score().model_copy(update={field: value}) for value in values]
    expected = rank_rewards(ranks([-value for value in values] if large_is_good else values))
    assert rewards_of(name, group(*scores), RuleOptions()) == expected


def test_what_has_no_number_ranks_last() -> None:
    assert rewards_of("entropy", group(score(None), score(1.0), score(2.0)), RuleOptions()) == [-1, 1, 0]


def test_answers_are_rewarded_by_the_verifier_the_majority_and_the_format() -> None:
    judged = [
        Judged("7", is_correct=True, is_boxed=True),
        Judged("8", is_correct=False, is_boxed=False),
        Judged("8.0", is_correct=False, is_boxed=True),
        Judged(None, is_correct=False, is_boxed=False),
    ]
    four = group(*[score()] * 4, judged=judged)
    assert rewards_of("verifier", four, RuleOptions()) == [1, 0, 0, 0]
    assert rewards_of("majority", four, RuleOptions()) == [0, 1, 1, 0]
    assert rewards_of("format", four, RuleOptions()) == [1, 0, 1, 0]
    assert rewards_of("majority", group(score(), score()), RuleOptions()) == [0, 0]


def test_random_rewards_are_ranks_that_depend_on_the_seed_alone() -> None:
    eight = [group(*[score()] * 8, seed=f"{number}") for number in range(50)]
    drawn = [rewards_of("random", one, RuleOptions()) for one in eight]
    assert drawn == [rewards_of("random", one, RuleOptions()) for one in eight]
    assert all(sorted(rewards, reverse=True) == rank_rewards(range(1, 9)) for rewards in drawn)
    assert len({tuple(rewards) for rewards in drawn}) > 40


def test_every_reward_has_a_number_for_every_completion_whatever_happened_to_it() -> None:
    broken = group(score(None), score(), score(1.0, p_norm=None))
    for name in BUILTINS:
        assert len(rewards_of(name, broken, RuleOptions())) == 3


def test_only_vigor_needs_a_gradient() -> None:
    assert {name for name in BUILTINS if "norm" in needed_parts([name])} == {"vigor"}
