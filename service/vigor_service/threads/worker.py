"""A thread that runs its work in order. One such thread computes, and only that thread uses the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


class WorkerThread:
    """Runs one piece of work at a time. An error is raised to the caller, and the thread continues."""

    def __init__(self, name: str, *, clock: Callable[[], float] = monotonic) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._unfinished: set[Future[Any]] = set()
        self._clock = clock
        self._thread: threading.Thread | None = None
        # Seconds of finished work, and start of the current work: one value, so that readers see both change at once.
        self._worked: tuple[float, float | None] = (0.0, None)

    @property
    def is_idle(self) -> bool:
        """Whether all work is done, or was cancelled before it began."""
        return not self._unfinished

    @property
    def is_alive(self) -> bool:
        """Whether the thread accepts work, or has not been started yet."""
        return self._thread is None or self._thread.is_alive()

    @property
    def busy_seconds(self) -> float:
        """Seconds for which the current work has been running; 0 if there is none."""
        _, began_at = self._worked
        return 0.0 if began_at is None else self._clock() - began_at

    @property
    def total_busy_seconds(self) -> float:
        """Seconds for which the thread has worked in total, the current work included. Never falls."""
        seconds, began_at = self._worked
        return seconds if began_at is None else seconds + self._clock() - began_at

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``work`` returns on the thread, or raise what it raises."""
        future = self._executor.submit(self._timed, work, *args, **kwargs)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Accept no more work, without waiting for work in progress, which cannot be interrupted."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _timed(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self._thread = threading.current_thread()
        self._worked = (self._worked[0], self._clock())
        try:
            return work(*args, **kwargs)
        finally:
            self._worked = (self.total_busy_seconds, None)
