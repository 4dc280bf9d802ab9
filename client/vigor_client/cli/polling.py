"""Polling until an answer is accepted, with a line of output when the kind of answer changes. For the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

PAUSE_SECONDS = 0.5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock and a sleep function, which tests replace."""

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
    """Call ``ask`` until an answer needs no more waiting or the time is up; return the last answer.

    ``must_wait`` takes an answer and the seconds from the start at which the next attempt would be made.
    ``announce`` is called with the first answer that requires waiting, and with each later one whose ``kind`` differs
    from that of the previous answer.
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
