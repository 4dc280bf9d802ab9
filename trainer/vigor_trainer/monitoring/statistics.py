"""Statistics of a scored round, in plain Python: how reward and length are correlated. Knows no TRL and no wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from statistics import fmean


def correlation_within_groups(groups: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Return the Pearson correlation of x and y after each group's own means are subtracted.

    So only the choice within a prompt counts, not which prompts are long.

    Returns:
        A value in [-1, 1]; None where x or y never varies within a group.
    """
    x: list[float] = []
    y: list[float] = []
    for group_x, group_y in groups:
        x.extend(_centred(group_x))
        y.extend(_centred(group_y))
    scale = sqrt(sum(value * value for value in x) * sum(value * value for value in y))
    if scale == 0:
        return None
    return max(-1.0, min(1.0, sum(a * b for a, b in zip(x, y, strict=True)) / scale))


def _centred(values: Sequence[float]) -> list[float]:
    middle = fmean(values)
    return [value - middle for value in values]
