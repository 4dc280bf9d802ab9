"""Which of several ways to compute the same thing is the fastest here: measured once per kind of work, then kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from statistics import median

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_RUNS = 5
Way = Callable[[], Tensor]


class UnavailableError(Exception):
    """A way cannot be taken on this machine; the message says which, and why."""


def device_seconds(way: Way) -> float:
    """Return the median time of a few runs on the current CUDA device, after one that compiles and warms up."""
    way()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_RUNS)]
    for start, stop in events:
        start.record()
        way()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in events) / 1000


class FastestWays:
    """Remembers, for each kind of work, its ways by their measured time."""

    def __init__(self, seconds: Callable[[Way], float] = device_seconds) -> None:
        self._seconds = seconds
        self._ranked: dict[Hashable, list[str]] = {}  # fastest first

    def run(self, work: Hashable, ways: Mapping[str, Way]) -> Tensor:
        """Return the result of the fastest way; the first time of this kind of work, every way is timed.

        A way that fails is left out from then on, with a warning that says why.

        Raises:
            UnavailableError, torch.OutOfMemoryError: no way is left; the last one's reason.
        """
        if work not in self._ranked:
            self._ranked[work] = self._rank(work, ways)
        ranked = self._ranked[work]
        while True:
            try:
                return ways[ranked[0]]()
            except UnavailableError as error:
                logger.warning("%s: no longer by %s: %s", work, ranked[0], error)
                if len(ranked) == 1:
                    raise
                del ranked[0]

    def _rank(self, work: Hashable, ways: Mapping[str, Way]) -> list[str]:
        seconds: dict[str, float] = {}
        refusal: Exception = UnavailableError(f"{work}: there is no way to compute it")
        for name, way in ways.items():
            try:
                seconds[name] = self._seconds(way)
            except (UnavailableError, torch.OutOfMemoryError) as error:
                logger.warning("%s: not by %s: %s", work, name, error)
                refusal = error
        if not seconds:
            raise refusal
        ranked = sorted(seconds, key=lambda name: seconds[name])
        logger.info("%s: by %s", work, ", ".join(f"{name} ({seconds[name]:.2e} s)" for name in ranked))
        return ranked
