"""Statistics of a scored round, in plain Python: answers found, and the correlation of reward and length.

Nothing here is ever rewarded. Knows neither TRL nor the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import sqrt
from statistics import fmean

# A minus sign counts only where it cannot be a subtraction: "10-4" ends in 4, "= -4" in -4.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\d+(?:,\d{3})*(?:\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """Return the last number written in the text, thousands separators removed; None where there is none."""
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def is_correct(completion: str, answer: str) -> bool:
    """Return whether the completion's last number is the answer's last number; without a number: the same words."""
    expected = last_number(answer)
    if expected is None:
        return completion.strip().casefold() == answer.strip().casefold()
    return last_number(completion) == expected


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
