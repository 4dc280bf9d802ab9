"""Which of N packed rows belong to which sequence, for a kernel to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowRanges:
    """B ranges of rows, on the host and on the device."""

    bounds: tuple[tuple[int, int], ...]  # first row, row after the last
    bounds_B2: Tensor  # the same, int64, on the device

    @property
    def longest(self) -> int:
        """The number of rows of the longest range."""
        return max(stop - start for start, stop in self.bounds)

    def split(self, tensor_ND: Tensor) -> list[Tensor]:
        """Return the rows (T, D) of each range."""
        return [tensor_ND[start:stop] for start, stop in self.bounds]


def row_ranges(bounds: Sequence[tuple[int, int]], device: torch.device) -> RowRanges:
    """Return the ranges, with their bounds on the device as well.

    Raises:
        ValueError: there are no ranges, or one is empty.
    """
    if not bounds or any(start >= stop for start, stop in bounds):
        raise ValueError(f"ranges must have rows, these do not: {[pair for pair in bounds if pair[0] >= pair[1]]}")
    return RowRanges(tuple(bounds), torch.tensor(bounds, device=device))
