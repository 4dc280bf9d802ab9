"""Choice of the fastest implementation of an operation on this machine: timed once per kind of work, then kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_RUNS = 5
Implementation = Callable[[], Tensor]


class UnavailableError(Exception):
    """An implementation does not run on this machine; the message says which, and why."""


def device_seconds(implementation: Implementation) -> float:
    """Return the median time of a few runs on the current CUDA device, after one that compiles and warms up."""
    implementation()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_RUNS)]
    for start, stop in events:
        start.record()
        implementation()
        stop.record()
    torch.cuda.synchronize()
    return median(start.elapsed_time(stop) for start, stop in events) / 1000


@dataclass(slots=True)
class _Times:
    """The times of the implementations of one kind of work. ``untimed`` are those whose timing ran out of memory."""

    untimed: list[str]
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    num_runs: int = 0

    @property
    def is_due(self) -> bool:
        """Whether to time the ``untimed`` now: before runs 1, 2, 3, 5, 9, 17 and so on, so that timing costs little."""
        is_power_of_two = self.num_runs & (self.num_runs - 1) == 0
        return not self.seconds or (bool(self.untimed) and is_power_of_two)


class Autotuner:
    """Remembers the measured time of each implementation, for each kind of work."""

    def __init__(self, seconds: Callable[[Implementation], float] = device_seconds) -> None:
        self._seconds = seconds
        self._times: dict[Hashable, _Times] = {}

    def run(self, work: Hashable, implementations: Mapping[str, Implementation]) -> Tensor:
        """Return the result of the fastest implementation; for the first work of a kind, every implementation is timed.

        An implementation that is unavailable is left out from then on, with a warning that says why. One whose timing
        ran out of memory is left out for now and timed again later: it depends on what else is in memory.

        Raises:
            torch.OutOfMemoryError: no implementation is left, and memory is the reason for one of them.
            UnavailableError: no implementation is left; the message is the reason of the last.
        """
        times = self._times.get(work) or _Times(list(implementations))
        if times.is_due:
            self._time(work, implementations, times)
        self._times[work] = times
        times.num_runs += 1
        while True:
            name = min(times.seconds, key=times.seconds.__getitem__)
            try:
                return implementations[name]()
            except UnavailableError as error:
                logger.warning("%s: %s failed and is not used again: %s", work, name, error)
                if len(times.seconds) == 1:
                    raise
                del times.seconds[name]

    def _time(self, work: Hashable, implementations: Mapping[str, Implementation], times: _Times) -> None:
        """Time the untimed implementations. If none runs, prefer an out-of-memory error: less work may then fit."""
        refusal: Exception = UnavailableError(f"{work}: no implementation is available")
        left, times.untimed = times.untimed, []
        for name in left:
            try:
                times.seconds[name] = self._seconds(implementations[name])
            except torch.OutOfMemoryError as error:
                logger.warning("%s: %s failed and is not used for now: %s", work, name, error)
                refusal = error
                times.untimed.append(name)
            except UnavailableError as error:
                logger.warning("%s: %s is not used: %s", work, name, error)
                refusal = refusal if times.untimed else error
        if not times.seconds:
            raise refusal
        ranked = sorted(times.seconds.items(), key=lambda item: item[1])
        logger.info("%s: fastest first: %s", work, ", ".join(f"{name} ({seconds:.2e} s)" for name, seconds in ranked))
