"""Numbers that show, for one round, whether rewards still distinguish completions and whether the policy degenerates.

Labels are used for only one number, which is only reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from vigor_trainer.monitoring.completions import CompletionRecord
from vigor_trainer.monitoring.statistics import relative_spread, repetition

LOOPING = 0.5
"""Minimum repetition at which a completion counts as looping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundHealth:
    """Shares of the completions of a round, in [0, 1]. None means that there was nothing to measure."""

    duplicate_share: float  # share with the same tokens as another of their group
    tie_share: float | None  # share with the same reward as a completion of their group with other tokens
    repetition: float  # mean share of 3-grams that occurred earlier in the completion
    looping_share: float  # share whose repetition is at least LOOPING
    norm_spread: float | None  # mean over groups of (largest - smallest) / mean of the scaled norms
    top_quarter_accuracy: float | None  # accuracy of each group's best quarter by reward, ties included


def round_health(completions: Sequence[CompletionRecord]) -> RoundHealth:
    """Return the health of a round of at least one completion; completions of a group are consecutive.

    It uses the first of the run's built-in rewards.
    """
    groups = [list(members) for _, members in groupby(completions, key=lambda completion: completion.group)]
    loops = [repetition(completion.completion_ids) for completion in completions]
    return RoundHealth(
        duplicate_share=fmean(shared for group in groups for shared in _duplicated(group)),
        tie_share=_mean(tied for group in groups for tied in _tied(group)),
        repetition=fmean(loops),
        looping_share=fmean(loop >= LOOPING for loop in loops),
        norm_spread=_mean(relative_spread([completion.scaled_grad_norm for completion in group]) for group in groups),
        top_quarter_accuracy=_mean(right for group in groups for right in _best_are_correct(group)),
    )


def first_reward(completion: CompletionRecord) -> float | None:
    """Return the completion's value of the run's first built-in reward; None if the run has none."""
    return next(iter(completion.rewards.values()), None)


def _duplicated(group: Sequence[CompletionRecord]) -> list[bool]:
    counts = Counter(tuple(completion.completion_ids) for completion in group)
    return [counts[tuple(completion.completion_ids)] > 1 for completion in group]


def _tied(group: Sequence[CompletionRecord]) -> list[bool | None]:
    rewards = [first_reward(completion) for completion in group]
    distinct = Counter(reward for reward, _ in {(first_reward(other), tuple(other.completion_ids)) for other in group})
    return [None if reward is None else distinct[reward] > 1 for reward in rewards]


def _best_are_correct(group: Sequence[CompletionRecord]) -> list[bool | None]:
    rewarded = [(reward, member) for member in group if (reward := first_reward(member)) is not None]
    if not rewarded:
        return []
    least = sorted((reward for reward, _ in rewarded), reverse=True)[max(1, len(rewarded) // 4) - 1]
    return [member.is_correct for reward, member in rewarded if reward >= least]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
