"""A limit of processor time for one piece of work. Knows no threads and no queue.

A thread cannot be stopped from outside, so the work is stopped from inside: what may take long calls ``checkpoint``
between its parts.
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
    """The limit of one piece of work: ``seconds`` of the processor on the thread that runs it.

    ``clock`` is read on that thread. The operating system keeps it: waiting, and what other threads do, is not in it.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = thread_time) -> None:
        self._seconds = seconds
        self._clock = clock
        self._ends_at = 0.0
        self._is_abandoned = False

    def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``work`` returns; its checkpoints raise as ``check`` does."""
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
        """Return if the work may go on.

        Raises:
            PayloadTooLargeError: it has used its processor time.
            ClientGoneError: it was abandoned.
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
    """Raise as ``WorkLimit.check`` if what runs here has a limit and is past it."""
    limit = _current.get()
    if limit is not None:
        limit.check()
