"""Waiting for the requested number of engines. For the command line."""

from __future__ import annotations

import time
from collections.abc import Callable

from vigor_client.cli.polling import Clock, poll
from vigor_client.errors import NotReadyError
from vigor_client.schemas.engines import EngineList


def wait_until_up(
    ask: Callable[[], EngineList],
    announce: Callable[[str], None],
    timeout_seconds: float,
    *,
    clock_seconds: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until the requested number of engines is up; return the seconds waited.

    ``announce`` is called with a line whenever the number of running engines changes.

    Raises:
        NotReadyError: they were not up in time; says how many were.
    """
    clock = Clock(clock_seconds, sleep)
    started_seconds = clock.seconds()
    found = poll(
        ask,
        lambda found, _: not _are_up(found),
        lambda found: announce(_state(found)),
        kind=lambda found: found.num_up,
        timeout_seconds=timeout_seconds,
        clock=clock,
    )
    if not _are_up(found):
        raise NotReadyError(f"{_state(found)} after {timeout_seconds:g} s; the service continues to start the others")
    return clock.seconds() - started_seconds


def _are_up(found: EngineList) -> bool:
    return found.num_up == len(found.engines)


def _state(found: EngineList) -> str:
    return f"{found.num_up} of {len(found.engines)} engines are up"
