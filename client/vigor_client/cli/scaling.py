"""Waiting for the engines that were asked for. For the command line."""

from __future__ import annotations

import time
from collections.abc import Callable

from vigor_client.errors import NotReadyError
from vigor_client.schemas.engines import EngineList

PAUSE_SECONDS = 0.5


def wait_until_up(
    ask: Callable[[], EngineList],
    announce: Callable[[str], None],
    timeout_seconds: float,
    *,
    clock_seconds: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until all engines that there should be are up; return the seconds that took.

    ``announce`` gets a line whenever the number that is up is another one.

    Raises:
        NotReadyError: they were not in time; says how many were.
    """
    started_seconds, told = clock_seconds(), -1
    while (found := ask()).num_up < len(found.engines):
        state = f"{found.num_up} of {len(found.engines)} engines are up"
        if clock_seconds() + PAUSE_SECONDS > started_seconds + timeout_seconds:
            raise NotReadyError(f"{state} after {timeout_seconds:g} s; the service goes on to start the others")
        if found.num_up != told:
            announce(state)
            told = found.num_up
        sleep(PAUSE_SECONDS)
    return clock_seconds() - started_seconds
