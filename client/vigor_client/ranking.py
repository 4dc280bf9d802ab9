"""Turns values into ranks and ranks into rewards, in pure Python: usable from any trainer.

Knows nothing about where the values come from. Within a group the smallest value is best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

TieRule = Literal["average", "ordinal"]


def ranks(values: Sequence[float | None], *, ties: TieRule = "average") -> list[float]:
    """Rank the values of one group: 1 for the smallest, ``len(values)`` for the largest.

    Equals ``scipy.stats.rankdata(values, method=ties)`` on a group without ``None``. A ``None`` (a completion
    without a value) ranks behind every number; all of them share the mean of the last ranks.
    With ``ties="ordinal"`` equal values rank by index, as in the reference implementation's stable double argsort.
    """
    scored = [index for index, value in enumerate(values) if value is not None]
    result = [(len(scored) + 1 + len(values)) / 2] * len(values)
    ordered = sorted(scored, key=lambda index: (values[index], index))
    start = 0
    while start < len(ordered):
        stop = start + 1
        while ties == "average" and stop < len(ordered) and values[ordered[stop]] == values[ordered[start]]:
            stop += 1
        for index in ordered[start:stop]:
            result[index] = (start + 1 + stop) / 2
        start = stop
    return result


def rank_rewards(group_ranks: Sequence[float]) -> list[float]:
    """Map the ranks of one group linearly to [-1, 1]: ``1 - 2 (rank - 1) / (G - 1)``; 0 in a group of one."""
    if len(group_ranks) < 2:
        return [0.0] * len(group_ranks)
    return [1 - 2 * (rank - 1) / (len(group_ranks) - 1) for rank in group_ranks]
