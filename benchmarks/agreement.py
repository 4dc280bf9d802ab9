"""Measures of how far two ways to score the completions of one group agree on their order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import sqrt
from statistics import correlation

from vigor_client.ranking import ranks


def kendall_tau_b(left: Sequence[float], right: Sequence[float]) -> float:
    """Return 1 for the same order, -1 for the opposite one. Equals ``scipy.stats.kendalltau(left, right).statistic``.

    It is the number of pairs that agree minus those that disagree, divided by the geometric mean of the numbers of
    untied pairs on either side (M. G. Kendall 1945, The treatment of ties in ranking problems, Biometrika 33(3)).

    Raises:
        ValueError: all values of one side are equal, so it has no order.
    """
    pairs = list(combinations(zip(left, right, strict=True), 2))
    signs = [(_sign(a - b), _sign(x - y)) for (a, x), (b, y) in pairs]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    if 0 in untied:
        raise ValueError("values that are all equal have no order to agree with")
    return sum(a * x for a, x in signs) / sqrt(untied[0] * untied[1])


def spearman_rho(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the correlation of the ranks, which equals that of the rewards. Equals ``scipy.stats.spearmanr``."""
    return correlation(ranks(left), ranks(right))


def same_best(left: Sequence[float], right: Sequence[float]) -> bool:
    """Return whether the smallest value of ``right``, which is rewarded most, is also a smallest of ``left``."""
    return left[min(range(len(right)), key=right.__getitem__)] == min(left)


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
