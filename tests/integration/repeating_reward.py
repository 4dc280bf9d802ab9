"""A reward that makes a policy collapse: it pays for one token, again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def repeating(completion_ids: Sequence[Sequence[int]], **_columns: object) -> list[float]:
    """Return how often each completion has its most frequent token."""
    return [float(max(Counter(ids).values(), default=0)) for ids in completion_ids]
