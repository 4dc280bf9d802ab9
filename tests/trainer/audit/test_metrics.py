"""Audits of completions whose norms are a known function of correctness give exactly what was planted."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from tests.trainer.audit.planted import WEIGHTS, PlantedService, group, planted_metrics
from tests.trainer.evaluation.examples import evaluated
from vigor_trainer.audit.scoring import GROUPS_AT_ONCE, audited
from vigor_trainer.audit.verdict import verdict_of
from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.monitoring.intervals import Estimate

RIGHT, WRONG = True, False
LABELS = [RIGHT, WRONG, RIGHT, WRONG]


def groups_of(norms: list[int], *, count: int = 12) -> list[EvaluatedCompletion]:
    return [each for question in range(count) for each in group(question, norms, LABELS)]


@pytest.mark.parametrize(
    ("norms", "auc", "kind"),
    [
        ([10, 20, 11, 21], 1.0, "aligned"),
        ([20, 10, 21, 11], 0.0, "opposed"),
        ([10, 10, 10, 10], 0.5, "chance"),
        ([10, 11, 13, 12], 0.5, "chance"),
        ([10, 11, 12, 13], 0.75, "aligned"),
        ([10, 10, 12, 13], 0.625, None),
    ],
)
def test_the_auc_is_the_one_that_was_planted(norms: list[int], auc: float, kind: str | None) -> None:
    metrics = planted_metrics(groups_of(norms))
    for name in ("vigor", "self_certainty", "entropy", "logprob", "p_norm"):
        assert metrics.rewards[name].auc == Estimate(auc, auc, auc)  # every question gives the same
    assert metrics.num_pairs == 12 * 4
    assert metrics.num_mixed == 12
    assert metrics.rewards["verifier"].auc == Estimate(1.0, 1.0, 1.0)
    if kind is not None:
        assert verdict_of(metrics).kind == kind


def test_an_auc_over_questions_that_differ_is_that_of_all_pairs() -> None:
    good, bad = groups_of([10, 20, 11, 21], count=6), groups_of([20, 10, 21, 11], count=10)
    metrics = planted_metrics([*good, *(each for each in bad if each.question >= 6)])
    auc = metrics.rewards["vigor"].auc
    assert auc is not None
    assert auc.value == 6 / 10
    assert auc.low < 0.5 < auc.high
    verdict = verdict_of(metrics)
    assert verdict.kind == "chance"
    assert "not aligned with correctness here beyond chance" in verdict.sentence
    assert "60 % [" in verdict.sentence
    assert "chance is 50 %, and 95 % of random orders of the same completions reach " in verdict.sentence


def test_sentences_say_what_was_seen() -> None:
    aligned = verdict_of(planted_metrics(groups_of([10, 20, 11, 21]))).sentence
    assert aligned.startswith(
        "Confidence is aligned with correctness here, above chance: in 100 % [100 %, 100 %] of 48 "
    )
    assert "smaller gradient norm; chance is 50 %, and 95 % of random orders" in aligned
    opposed = verdict_of(planted_metrics(groups_of([20, 10, 21, 11]))).sentence
    assert opposed.endswith("Training with this reward would reinforce errors.")


def test_few_questions_with_both_kinds_of_completions_give_no_verdict() -> None:
    for count in (0, 1, 9):
        mixed = groups_of([10, 20, 11, 21], count=count)
        unmixed = group(90, [10, 11, 12, 13], [RIGHT] * 4)
        verdict = verdict_of(planted_metrics([*mixed, *unmixed]))
        assert verdict.kind == "unknown"
        assert f"{count} of {count + 1} questions have both correct and wrong" in verdict.sentence


def test_an_auc_that_random_orders_reach_too_is_chance() -> None:
    metrics = planted_metrics(groups_of([10, 11, 12, 13]))
    assert metrics.random_auc is not None
    assert metrics.random_auc.value == pytest.approx(0.5, abs=0.01)
    assert 0.3 < metrics.random_auc.low < 0.4 < 0.6 < metrics.random_auc.high < 0.7
    assert verdict_of(metrics).kind == "aligned"
    wide = replace(metrics, random_auc=Estimate(0.5, 0.2, 0.8))
    assert verdict_of(wide).kind == "chance"
    assert "random orders of the same completions reach 20 to 80 %." in verdict_of(wide).sentence


def test_the_best_of_a_group_is_compared_with_greedy_mean_and_majority() -> None:
    greedy = [evaluated(question, decoding="greedy", is_correct=question < 3) for question in range(12)]
    metrics = planted_metrics([*greedy, *groups_of([10, 20, 21, 11])])
    values = {
        "greedy": metrics.greedy_accuracy,
        "mean": metrics.mean_accuracy,
        "majority": metrics.majority_accuracy,
        "any": metrics.best_possible_accuracy,
        "best": metrics.rewards["vigor"].best_of_accuracy,
        "minus greedy": metrics.rewards["vigor"].best_of_minus_greedy,
        "minus mean": metrics.rewards["vigor"].best_of_minus_mean,
    }
    assert {name: estimate and estimate.value for name, estimate in values.items()} == {
        "greedy": 0.25,
        "mean": 0.5,
        "majority": 1.0,  # both correct ones give the same answer, the wrong ones two others
        "any": 1.0,
        "best": 1.0,
        "minus greedy": 0.75,
        "minus mean": 0.5,
    }
    assert planted_metrics(groups_of([10, 20, 21, 11])).greedy_accuracy is None


def test_equal_rewards_share_the_place_of_the_best() -> None:
    metrics = planted_metrics(groups_of([10, 10, 12, 12]))
    assert metrics.rewards["vigor"].best_of_accuracy == Estimate(0.5, 0.5, 0.5)
    assert metrics.rewards["format"].best_of_accuracy == Estimate(0.5, 0.5, 0.5)


def test_slopes_are_those_of_a_planted_power_of_length() -> None:
    norms = [1000, 500, 250, 125]  # times a half for each further token
    metrics = planted_metrics(groups_of(norms))
    x = [log(length) for length in (1, 2, 3, 4)]
    y = [log(norm) for norm in norms]
    mean_x, mean_y = sum(x) / 4, sum(y) / 4
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    assert metrics.norms.scaled_log_slope is not None
    assert metrics.norms.log_slope is not None
    assert metrics.norms.scaled_log_slope.value == pytest.approx(slope)
    assert metrics.norms.log_slope.value == pytest.approx(slope - 0.5)


def test_ties_duplicates_and_spread_are_counted() -> None:
    completions = groups_of([10, 10, 20, 40])
    same = [evaluated(50, index, completion_ids=[8], is_correct=True) for index in range(2)]
    metrics = planted_metrics([*completions, *same])
    assert metrics.norms.tied_share is not None
    assert metrics.norms.duplicate_share is not None
    assert metrics.norms.spread is not None
    assert metrics.norms.tied_share.value == pytest.approx((12 * 1 + 1) / (12 * 6 + 1))
    assert metrics.norms.duplicate_share.value == pytest.approx(1 / 50)
    assert metrics.norms.spread.value == pytest.approx((12 * 30 / 20 + 0) / 13)


def test_many_questions_are_asked_about_in_several_requests_each_of_bounded_size() -> None:
    service = PlantedService()
    questions = 2 * GROUPS_AT_ONCE + 1
    completions = [each for number in range(questions) for each in group(number, [10, 20 + number], [True, False])]
    scored = audited(completions, service, WEIGHTS, seed=0)
    assert len(service.requests) == 3
    assert [each.scaled_grad_norm for each in scored[1::2]] == [20 + number for number in range(questions)]


def test_all_rewards_come_from_the_same_requests_under_exactly_the_given_weights() -> None:
    service = PlantedService()
    scored = audited(groups_of([10, 20, 11, 21]), service, WEIGHTS, seed=0)
    request, *others = service.requests
    assert others == [request] * len(others)
    assert (request["weight_version"], request["weight_digest"]) == (7, WEIGHTS.weight_digest)
    assert request["compute"] == ("norm", "signals")
    first = scored[0]
    assert first.scaled_grad_norm == 10
    assert first.rewards is not None
    assert first.rewards["vigor"] == 1
    assert (first.rewards["verifier"], first.rewards["majority"], first.rewards["format"]) == (1, 1, 0)


def test_the_random_order_depends_on_the_seed_alone() -> None:
    completions = groups_of([10, 20, 11, 21])

    def random(seed: int) -> list[float]:
        return [(each.rewards or {})["random"] for each in audited(completions, PlantedService(), WEIGHTS, seed=seed)]

    assert random(0) == random(0) != random(1)
