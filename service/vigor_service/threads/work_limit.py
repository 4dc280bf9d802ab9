"""A limit of processor time for one piece of work. Knows no threads and no queue.

A thread cannot be stopped from outside, so work stops itself: work that may take long calls ``checkpoint`` between its
parts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from time import thread_time
from typing import ParamSpec, TypeVar

from vigor_service.errors import ClientGoneError, PayloadTooLargeError

_P = ParamSpec("_P")
_R = TypeVar("_R")


class WorkLimit:
    """The limit of one piece of work: ``seconds`` of processor time on the thread that runs it.

    ``clock`` is read on that thread. It is the operating system's clock of the thread's processor time, so waiting and
    the work of other threads do not count.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = thread_time) -> None:
        self._seconds = seconds
        self._clock = clock
        self._ends_at = 0.0
        self._is_abandoned = False

    def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run ``work`` and return its result. Its checkpoints raise as ``check`` does."""
        self._ends_at = self._clock() + self._seconds
        token = _current.set(self)
        try:
            return work(*args, **kwargs)
        finally:
            _current.reset(token)

    def abandon(self) -> None:
        """End the work at its next checkpoint. May be called from any thread."""
        self._is_abandoned = True

    def check(self) -> None:
        """Check that the work may go on.

        Raises:
            PayloadTooLargeError: the work has used its processor time.
            ClientGoneError: the work was abandoned.
        """
        if self._is_abandoned:
            raise ClientGoneError("the client left while its request was prepared")
        if self._clock() > self._ends_at:
            raise PayloadTooLargeError(
                f"preparing the request took more than {self._seconds:g} seconds of processor time; nothing was "
                "scored: send fewer groups at once, or token ids"
            )


_current: ContextVar[WorkLimit | None] = ContextVar("current_work_limit", default=None)


def checkpoint() -> None:
    """Check the limit of the current work, if it has one. Raises as ``WorkLimit.check``."""
    limit = _current.get()
    if limit is not None:
        limit.check()
