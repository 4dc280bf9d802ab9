"""Statistics of groups of completions, in plain Python, for runs, evaluations, audits and reports.

Knows neither TRL nor the HTTP API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb, sqrt
from statistics import fmean


def correlation_within_groups(groups: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Return the Pearson correlation of x and y after each group's own means are subtracted.

    So only differences within a prompt count, not which prompts are long.

    Returns:
        A value in [-1, 1]; None if x or y never varies within a group.
    """
    x: list[float] = []
    y: list[float] = []
    for group_x, group_y in groups:
        x.extend(centred(group_x))
        y.extend(centred(group_y))
    scale = sqrt(sum(value * value for value in x) * sum(value * value for value in y))
    if scale == 0:
        return None
    return max(-1.0, min(1.0, sum(a * b for a, b in zip(x, y, strict=True)) / scale))


def ordered_pairs(values: Sequence[float], is_correct: Sequence[bool]) -> tuple[float, int]:
    """Return the number of pairs whose correct completion has a larger value than the wrong one, and of all pairs.

    A pair of equal values counts half. The first divided by the second is the area under the ROC curve (AUC): 1 if each
    correct completion has a larger value than each wrong one, 0.5 by chance.
    """
    correct = [value for value, right in zip(values, is_correct, strict=True) if right]
    wrong = [value for value, right in zip(values, is_correct, strict=True) if not right]
    won = sum(float(a > b) + 0.5 * (a == b) for a in correct for b in wrong)
    return won, len(correct) * len(wrong)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the probability that at least one of k samples, drawn without replacement, is correct.

    Equals ``1 - comb(n - c, k) / comb(n, k)`` (arXiv 2107.03374).

    Raises:
        ValueError: k is not between 1 and the number of samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}: give 1 to {num_samples}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Return the share of a completion's token n-grams that occurred earlier in it; 0 if it has no n-grams."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def relative_spread(norms: Sequence[float | None]) -> float | None:
    """Return (largest - smallest) / mean of the norms that are not None; None without any, or if all are 0."""
    present = [norm for norm in norms if norm is not None]
    middle = fmean(present) if present else 0.0
    return (max(present) - min(present)) / middle if middle > 0 else None


def centred(values: Sequence[float]) -> list[float]:
    """Return the values minus their mean."""
    middle = fmean(values) if values else 0.0
    return [value - middle for value in values]
