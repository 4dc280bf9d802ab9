"""The numbers of an audit, each with its bootstrap interval over questions.

A pair is one correct and one wrong completion of the same question, which a reward has to tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log
from statistics import fmean

import numpy as np

from vigor_trainer.audit.scoring import REWARDS, AuditedCompletion
from vigor_trainer.evaluation.metrics import mean_of_completions
from vigor_trainer.monitoring.intervals import LEVEL, NUM_RESAMPLES, Estimate, mean, ratio
from vigor_trainer.monitoring.statistics import centred, ordered_pairs, relative_spread

Group = Sequence[AuditedCompletion]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardMetrics:
    """How well one reward tells correct completions from wrong ones. None means that there was nothing to compare."""

    auc: Estimate | None  # share of pairs whose correct completion has the larger reward; equal rewards count half
    auc_minus_random: Estimate | None  # auc minus that of the reward `random` on the same questions
    best_of_accuracy: Estimate | None  # accuracy of the completion with the largest reward; the mean over ties
    best_of_minus_greedy: Estimate | None
    best_of_minus_mean: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NormMetrics:
    """How the norms of a group depend on length, and how much they differ."""

    log_slope: Estimate | None  # slope of log norm against log length within groups
    scaled_log_slope: Estimate | None  # the same slope for the norm times √T
    tied_share: Estimate | None  # share of a group's pairs of completions with equal scaled norms
    duplicate_share: Estimate | None  # share of completions with the same text as an earlier one of the group
    spread: Estimate | None  # (largest − smallest) / mean of a group's scaled norms


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditMetrics:
    """All numbers of an audit."""

    num_questions: int
    num_completions: int  # sampled
    num_mixed: int  # questions with correct and wrong completions
    num_pairs: int
    random_auc: Estimate | None  # AUC of random orders of the same completions: mean and middle 95 %
    greedy_accuracy: Estimate | None  # None: there were no greedy completions
    mean_accuracy: Estimate | None  # of the sampled completions, which a random choice reaches
    majority_accuracy: Estimate | None  # of the most frequent answer to each question
    best_possible_accuracy: Estimate | None  # share of questions with at least one correct completion
    clipped_share: Estimate | None
    mean_length: Estimate | None  # tokens
    rewards: Mapping[str, RewardMetrics]
    norms: NormMetrics


def audit_metrics(completions: Iterable[AuditedCompletion]) -> AuditMetrics:
    """Return the numbers of an audit from completions that all have a label."""
    groups, greedy = _by_question(completions)
    return AuditMetrics(
        num_questions=len(groups),
        num_completions=sum(map(len, groups)),
        num_mixed=sum(0 < sum(_labels(group)) < len(group) for group in groups),
        num_pairs=sum(ordered_pairs([0.0] * len(group), _labels(group))[1] for group in groups),
        random_auc=_of_random_orders(groups),
        greedy_accuracy=mean([greedy.get(group[0].question) for group in groups]),
        mean_accuracy=mean_of_completions(groups, lambda each: each.is_correct or False),
        majority_accuracy=mean([_best_of(group, "majority") for group in groups]),
        best_possible_accuracy=mean([float(any(_labels(group))) for group in groups]),
        clipped_share=mean_of_completions(groups, lambda each: each.finish_reason == "length"),
        mean_length=mean_of_completions(groups, lambda each: each.num_tokens),
        rewards={name: _of_reward(name, groups, greedy) for name in REWARDS},
        norms=_of_norms(groups),
    )


def _by_question(completions: Iterable[AuditedCompletion]) -> tuple[list[Group], dict[int, float]]:
    """Return the groups of sampled completions, and for each question whether its greedy completion is correct."""
    groups: dict[int, list[AuditedCompletion]] = {}
    greedy: dict[int, float] = {}
    for completion in completions:
        if completion.decoding == "greedy":
            greedy[completion.question] = float(completion.is_correct or False)
        else:
            groups.setdefault(completion.question, []).append(completion)
    return list(groups.values()), greedy


def _of_reward(name: str, groups: Sequence[Group], greedy: Mapping[int, float]) -> RewardMetrics:
    won, random_won, pairs = ([0.0] * len(groups) for _ in range(3))
    for at, group in enumerate(groups):
        won[at], pairs[at] = ordered_pairs(_rewards(group, name), _labels(group))
        random_won[at], _ = ordered_pairs(_rewards(group, "random"), _labels(group))
    best = [_best_of(group, name) for group in groups]
    of_greedy = [greedy.get(group[0].question) for group in groups]
    of_mean = [fmean(_labels(group)) for group in groups]
    return RewardMetrics(
        auc=ratio(won, pairs),
        auc_minus_random=ratio([a - b for a, b in zip(won, random_won, strict=True)], pairs),
        best_of_accuracy=mean(best),
        best_of_minus_greedy=mean([None if b is None else a - b for a, b in zip(best, of_greedy, strict=True)]),
        best_of_minus_mean=mean([a - b for a, b in zip(best, of_mean, strict=True)]),
    )


def _of_random_orders(groups: Sequence[Group]) -> Estimate | None:
    """Return the AUC of random orders on these groups, from ``NUM_RESAMPLES`` draws."""
    generator, won, num_pairs = np.random.default_rng(0), np.zeros(NUM_RESAMPLES), 0
    for group in groups:
        labels = np.asarray(_labels(group))
        ranks = generator.permuted(np.tile(np.arange(len(group)), (NUM_RESAMPLES, 1)), axis=1)
        num_correct = int(labels.sum())
        won += ranks[:, labels].sum(axis=1) - num_correct * (num_correct - 1) / 2  # wrong ones below correct ones
        num_pairs += num_correct * (len(group) - num_correct)
    if not num_pairs:
        return None
    low, high = np.quantile(won / num_pairs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(won.mean() / num_pairs), float(low), float(high))


def _best_of(group: Group, name: str) -> float:
    """Return the accuracy of the completion with the largest reward; with ties, the mean over all of them."""
    rewards = _rewards(group, name)
    return fmean(right for reward, right in zip(rewards, _labels(group), strict=True) if reward == max(rewards))


def _of_norms(groups: Sequence[Group]) -> NormMetrics:
    norms = [[each.scaled_grad_norm for each in group if each.scaled_grad_norm is not None] for group in groups]
    pairs = [list(combinations(of_group, 2)) for of_group in norms]
    return NormMetrics(
        log_slope=_log_slope(groups, lambda each: each.grad_norm),
        scaled_log_slope=_log_slope(groups, lambda each: each.scaled_grad_norm),
        tied_share=ratio([sum(a == b for a, b in of_group) for of_group in pairs], list(map(len, pairs))),
        duplicate_share=ratio(
            [len(group) - len({each.completion for each in group}) for group in groups], list(map(len, groups))
        ),
        spread=mean(list(map(relative_spread, norms))),
    )


def _log_slope(groups: Sequence[Group], norm: Callable[[AuditedCompletion], float | None]) -> Estimate | None:
    """Return the least-squares slope of log norm against log length, after subtracting each group's means.

    With a slope of 0 the norm does not depend on length; with −0.5 it falls as 1/√T.
    """
    products, squares = [0.0] * len(groups), [0.0] * len(groups)
    for at, group in enumerate(groups):
        measured = [(each.num_tokens, size) for each in group if (size := norm(each)) and each.num_tokens]
        lengths = centred([log(length) for length, _ in measured])
        norms = centred([log(size) for _, size in measured])
        products[at] = sum(x * y for x, y in zip(lengths, norms, strict=True))
        squares[at] = sum(x * x for x in lengths)
    return ratio(products, squares)


def _labels(group: Group) -> list[bool]:
    return [each.is_correct or False for each in group]


def _rewards(group: Group, name: str) -> list[float]:
    return [(each.rewards or {})[name] for each in group]
