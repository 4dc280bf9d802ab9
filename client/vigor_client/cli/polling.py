"""Asking again until an answer will do, with a line whenever it is of another kind. For the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

PAUSE_SECONDS = 0.5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, and how to let it pass."""

    seconds: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def poll(
    ask: Callable[[], T],
    must_wait: Callable[[T, float], bool],
    announce: Callable[[T], None],
    *,
    kind: Callable[[T], object],
    timeout_seconds: float,
    clock: Clock,
) -> T:
    """Ask until waiting is over or the time is up; return the last answer.

    ``must_wait`` is given an answer, and at how many seconds the next one would come. ``announce`` is given the first
    answer that has to be waited for, and those of another ``kind`` than the one before.
    """
    started_seconds = clock.seconds()
    told: object = None
    while True:
        answer, next_seconds = ask(), clock.seconds() + PAUSE_SECONDS - started_seconds
        if next_seconds > timeout_seconds or not must_wait(answer, next_seconds):
            return answer
        if kind(answer) != told:
            announce(answer)
            told = kind(answer)
        clock.sleep(PAUSE_SECONDS)
