"""How far a long run is, in one line that is written over itself. Knows nothing about what is done."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TextIO

REDRAW_SECONDS = 0.2


class ProgressLine:
    """Counts up to ``total`` and shows it on ``terminal``; without one it is silent. ``done`` were there before."""

    def __init__(
        self, terminal: TextIO | None, total: int, *, done: int = 0, clock_seconds: Callable[[], float] = monotonic
    ) -> None:
        self._terminal = terminal
        self._total = total
        self._done = self._done_before = done
        self._clock_seconds = clock_seconds
        self._started_seconds = self._drawn_seconds = clock_seconds()
        self._width = 0

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        now_seconds = self._clock_seconds()
        if now_seconds - self._drawn_seconds >= REDRAW_SECONDS or self._done == self._total:
            self._drawn_seconds = now_seconds
            self._draw(now_seconds - self._started_seconds)

    def close(self) -> None:
        """Leave the line as it is; what is written next has a line of its own."""
        if self._terminal is not None and self._width:
            print(file=self._terminal, flush=True)

    def _draw(self, elapsed_seconds: float) -> None:
        if self._terminal is None:
            return
        per_second = (self._done - self._done_before) / max(elapsed_seconds, 1e-9)
        left_seconds = (self._total - self._done) / per_second
        text = f"{self._done:,} of {self._total:,} groups, {per_second:.3g} groups/s, {_duration(left_seconds)} left"
        print("\r" + text.ljust(self._width), end="", file=self._terminal, flush=True)
        self._width = len(text)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
