"""Whether rewards still distinguish the completions of a group, and by more than their length. Plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import correlation

from vigor_client.ranking import ranks
from vigor_client.schemas.scoring import CompletionScore, CompletionStatus


@dataclass(frozen=True, slots=True)
class GroupHealth:
    """Figures of one ranked group. A figure is None where it is undefined, because nothing varies."""

    statuses: Counter[CompletionStatus]
    scaled_norms: list[float]
    num_duplicates: int
    num_tied: int
    norm_spread: float | None
    length_correlation: float | None


def group_health(sequences: Sequence[Hashable], scores: Sequence[CompletionScore]) -> GroupHealth:
    """Return the figures of one group. Apart from statuses and duplicates, they cover only ``ok`` completions."""
    ranked = [score for score in scores if score.status == "ok"]
    norms = [score.scaled_grad_norm for score in ranked if score.scaled_grad_norm is not None]
    return GroupHealth(
        statuses=Counter(score.status for score in scores),
        scaled_norms=norms,
        num_duplicates=len(sequences) - len(set(sequences)),
        num_tied=num_tied([score.rank for score in ranked]),
        norm_spread=relative_spread(norms),
        length_correlation=rank_correlation([score.reward for score in ranked], [score.num_tokens for score in ranked]),
    )


def num_tied(values: Sequence[float]) -> int:
    """Return how many of the values equal at least one other value."""
    return sum(count for count in Counter(values).values() if count > 1)


def relative_spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation divided by the mean, for values that are not negative.

    Equals ``statistics.pstdev(values) / statistics.fmean(values)``; None for less than two values, or if the mean is 0.
    """
    mean = sum(value / len(values) for value in values)
    if len(values) < 2 or mean == 0:
        return None
    # Divided by the mean first, because the squares of large norms would overflow.
    return sqrt(sum((value / mean - 1) ** 2 for value in values) / len(values))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's correlation, in [-1, 1]; None unless both vary. Equals ``scipy.stats.spearmanr(x, y)[0]``."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return max(-1.0, min(1.0, correlation(ranks(x), ranks(y))))
