"""Bootstrap intervals over questions or seeds: how much a number would vary with other draws of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, which contains a share ``LEVEL`` of the resampled numbers."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Estimate | None:
    """Return the sum of the numerators over the sum of the denominators, one of each per question.

    Whole questions are resampled, since the completions of one question are not independent of each other. A mean is
    the ratio whose denominators are 1 (see ``mean``). Resamples whose denominators are all 0 do not count.

    Returns:
        None if the denominators are all 0.
    """
    tops, bottoms = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if tops.shape != bottoms.shape:
        raise ValueError(f"{len(tops)} numerators for {len(bottoms)} denominators")
    if not bottoms.any():
        return None
    drawn = np.random.default_rng(seed).integers(len(tops), size=(NUM_RESAMPLES, len(tops)))
    sums = bottoms[drawn].sum(axis=1)
    resampled = tops[drawn].sum(axis=1)[sums != 0] / sums[sums != 0]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(tops.sum() / bottoms.sum()), float(low), float(high))


def mean(values: Sequence[float | None], *, seed: int = 0) -> Estimate | None:
    """Return the mean of one value per question, without those that are None; None if no values are left."""
    present = [value for value in values if value is not None]
    return ratio(present, [1.0] * len(present), seed=seed)
