"""Checks whether the compute thread makes progress. Knows nothing about what it computes."""

from __future__ import annotations

import logging

from vigor_service.errors import UnhealthyError
from vigor_service.threads.worker import WorkerThread

_logger = logging.getLogger(__name__)


class Watchdog:
    """Checks a thread on request and interrupts nothing. One piece of work may take ``limit_seconds``."""

    def __init__(self, thread: WorkerThread, *, limit_seconds: float) -> None:
        self._thread = thread
        self._limit_seconds = limit_seconds
        self._was_logged = False

    def require_progress(self) -> None:
        """Check that the thread is alive and within the time limit. A failure is logged once, until progress resumes.

        Raises:
            UnhealthyError: the thread has ended, or its work has run for longer than the limit.
        """
        reason = self._why_not()
        if reason is not None and not self._was_logged:
            _logger.error("unhealthy", extra={"reason": reason})
        self._was_logged = reason is not None
        if reason is not None:
            raise UnhealthyError(f"{reason}: restart the service")

    def _why_not(self) -> str | None:
        if not self._thread.is_alive:
            return "the compute thread has ended"
        seconds = self._thread.busy_seconds
        if seconds > self._limit_seconds:
            limit = f"{self._limit_seconds:g} s"
            return f"the compute thread has worked on one batch for {seconds:.0f} s; the limit is {limit}"
        return None
