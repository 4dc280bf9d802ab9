"""Norms that are equal where they differ by less than exact ways of computing them may."""

from __future__ import annotations

from itertools import zip_longest
from math import isclose, nan

RELATIVE = 1e-5  # of a tiny Llama; other families differ by 2e-4 at most


class NearNorms(list[float]):
    """A restarted service may take another of its exact ways for a sequence, which rounds differently."""

    __hash__ = None  # pyright: ignore[reportAssignmentType] - as a list has it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and all(
            isclose(mine, theirs, rel_tol=RELATIVE) for mine, theirs in zip_longest(self, other, fillvalue=nan)
        )

    def __ne__(self, other: object) -> bool:
        return not self == other
