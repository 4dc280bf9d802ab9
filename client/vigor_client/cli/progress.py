"""Progress of a long run: one line that is overwritten on a terminal, or a few lines in a log.

Knows nothing about the work itself.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TextIO

from vigor_client.publishing.progress import PublishProgress

REDRAW_SECONDS = 0.2
LOG_SECONDS = 10.0


class ProgressLine:
    """Counts from ``done`` to ``total`` and shows the count on ``terminal``; silent if that is None."""

    def __init__(
        self, terminal: TextIO | None, total: int, *, done: int = 0, clock_seconds: Callable[[], float] = monotonic
    ) -> None:
        self._line = _TerminalLine(terminal) if terminal else None
        self._total = total
        self._done = self._done_before = done
        self._clock_seconds = clock_seconds
        self._started_seconds = self._drawn_seconds = clock_seconds()

    def advance(self) -> None:
        """Count one more item as done."""
        self._done += 1
        now_seconds = self._clock_seconds()
        if now_seconds - self._drawn_seconds >= REDRAW_SECONDS or self._done == self._total:
            self._drawn_seconds = now_seconds
            self._draw(now_seconds - self._started_seconds)

    def close(self) -> None:
        """Leave the line as it is; what is written next has a line of its own."""
        if self._line:
            self._line.close()

    def _draw(self, elapsed_seconds: float) -> None:
        if self._line is None:
            return
        per_second = (self._done - self._done_before) / max(elapsed_seconds, 1e-9)
        left_seconds = (self._total - self._done) / per_second
        self._line.write(
            f"{self._done:,} of {self._total:,} groups, {per_second:.3g} groups/s, {_duration(left_seconds)} left"
        )


class PushProgress:
    """Shows the phases of a publication and their bytes: on a terminal at most five times a second, else every 10 s.

    With ``stream`` None nothing is shown. Each line in a log begins with ``prefix``.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        is_terminal: bool,
        prefix: str,
        clock_seconds: Callable[[], float] = monotonic,
    ) -> None:
        self._stream = stream
        self._line = _TerminalLine(stream) if stream and is_terminal else None
        self._pause_seconds = REDRAW_SECONDS if is_terminal else LOG_SECONDS
        self._prefix = prefix
        self._clock_seconds = clock_seconds
        self._phase = ""
        self._started_seconds = self._shown_seconds = clock_seconds()

    def show(self, progress: PublishProgress) -> None:
        """Show each new phase, and its progress when the last output is old enough or the phase is finished."""
        now_seconds = self._clock_seconds()
        is_new = progress.phase != self._phase or progress.done_bytes == 0
        is_finished = self._line is not None and progress.done_bytes == progress.total_bytes
        if not (is_new or is_finished or now_seconds - self._shown_seconds >= self._pause_seconds):
            return
        if is_new:
            self._phase, self._started_seconds = progress.phase, now_seconds
        self._shown_seconds = now_seconds
        self._write(_publication_text(progress, now_seconds - self._started_seconds))

    def close(self) -> None:
        """Leave the line as it is; what is written next has a line of its own."""
        if self._line:
            self._line.close()

    def _write(self, text: str) -> None:
        if self._line:
            self._line.write(text)
        elif self._stream:
            print(self._prefix, text, file=self._stream, flush=True)


class _TerminalLine:
    """One line of a terminal, which each new text overwrites."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._width = 0

    def write(self, text: str) -> None:
        print("\r" + text.ljust(self._width), end="", file=self._terminal, flush=True)
        self._width = len(text)

    def close(self) -> None:
        if self._width:
            print(file=self._terminal, flush=True)


def _publication_text(progress: PublishProgress, elapsed_seconds: float) -> str:
    if progress.total_bytes is None:
        return progress.phase
    total = f"{progress.total_bytes / 1e6:,.1f} MB"
    if not progress.done_bytes:
        return f"{progress.phase} {total}"
    per_second = progress.done_bytes / max(elapsed_seconds, 1e-9)
    left_seconds = (progress.total_bytes - progress.done_bytes) / per_second
    done = f"{progress.phase} {progress.done_bytes / 1e6:,.1f} of {total}"
    return f"{done}, {per_second / 1e6:,.1f} MB/s, {_duration(left_seconds)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
