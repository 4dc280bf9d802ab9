"""Limits of connections: how long one may keep the server waiting, and how many may. Knows nothing about requests.

A connection waits from its start, or from the end of an answer, until the headers of the next request have arrived.
Of all this, uvicorn limits only the pause between two requests.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import dataclass, replace
from typing import ClassVar

from vigor_service.errors import QueueFullError
from vigor_service.http.protocol import HeadBoundedProtocol, HeadLimits, Hooks

MAX_DESCRIPTORS = 1 << 16
RESERVED_DESCRIPTORS = 64
"""File descriptors kept for files, pipes and sockets that are not connections of callers."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits at which the server ends a connection."""

    header_seconds: float = 10.0
    """Maximum time from a connection's start, or a later request's first byte, until the headers have arrived."""

    refused_body_seconds: float = 60.0
    """Maximum time for the rest of a body whose request was answered before the body ended. Some callers send the whole
    body before they read the answer."""

    stalled_answer_seconds: float = 60.0
    """Maximum time for which the caller reads nothing of an answer while the socket's buffers are full."""

    max_waiting: int = 512
    """Maximum number of waiting connections; above it, the one that has waited longest is closed."""

    max_connections: int = MAX_DESCRIPTORS - RESERVED_DESCRIPTORS
    """Maximum number of connections. Above it, the longest waiting one is closed; if none waits, the one whose body has
    not grown for longest; if no body is arriving either, the newest."""

    def within(self, num_descriptors: int) -> ConnectionLimits:
        """Return these limits for a process that may have ``num_descriptors`` files open."""
        max_connections = max(num_descriptors - RESERVED_DESCRIPTORS, num_descriptors // 3)
        return replace(
            self,
            max_connections=min(self.max_connections, max_connections),
            max_waiting=min(self.max_waiting, max_connections * 3 // 4),
        )


DEFAULT_LIMITS = ConnectionLimits()


def raise_descriptor_limit() -> int:
    """Raise the limit of open files as far as this process may, up to ``MAX_DESCRIPTORS``; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return most if soft == resource.RLIM_INFINITY else soft


def bounded_protocol(
    limits: ConnectionLimits, hooks: Hooks, *, head_limits: HeadLimits | None = None
) -> type[HeadBoundedProtocol]:
    """Return uvicorn's HTTP protocol under these limits, for the connections of one server."""

    class Protocol(_BoundedProtocol):
        pass

    Protocol.limits, Protocol.waiting, Protocol.receiving = limits, {}, {}
    Protocol.hooks, Protocol.head_limits = hooks, head_limits or HeadLimits()
    return Protocol


class _BoundedProtocol(HeadBoundedProtocol):
    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict[_BoundedProtocol, None]]  # the one that has waited longest comes first
    receiving: ClassVar[dict[_BoundedProtocol, None]]  # the one whose body has not grown for longest comes first
    _is_within_body = False
    _request_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._make_room()
        if not transport.is_closing():
            self._begin_waiting()
            self._expect_rest()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # The data belongs to headers, or to a body that is not read. Uvicorn has stopped its timer for idle connections
        # and has no timer for these two.
        if self._is_waiting and self._request_timer is None:
            self._expect_rest()

    def on_headers_complete(self) -> None:
        self.waiting.pop(self, None)
        self._request_timer = _cancelled(self._request_timer)
        self._is_within_body = True
        self._note_progress()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._note_progress()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._request_timer = _cancelled(self._request_timer)
        self._is_within_body = False
        self.receiving.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_waiting:
            self._begin_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self.limits.stalled_answer_seconds
        self._answer_timer = self.loop.call_later(seconds, self._end, "answer_not_taken")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._answer_timer = _cancelled(self._answer_timer)

    def timeout_keep_alive_handler(self) -> None:
        self._end("idle")

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._request_timer = _cancelled(self._request_timer)
        self._answer_timer = _cancelled(self._answer_timer)
        super().connection_lost(exc)

    @property
    def _is_waiting(self) -> bool:
        cycle = self._last_cycle
        is_answering = cycle is not None and not cycle.response_complete
        return not is_answering and not self.transport.is_closing()

    def _begin_waiting(self) -> None:
        self.waiting[self] = None
        if len(self.waiting) > self.limits.max_waiting:
            next(iter(self.waiting))._end("too_many_waiting")

    def _make_room(self) -> None:
        """End the connection that has kept the server waiting for longest, or this one if none keeps it waiting."""
        self.hooks.on_too_many()
        if longest := next(iter(self.waiting), None) or next(iter(self.receiving), None):
            longest._end("too_many_connections")
            return
        error = QueueFullError("the service has too many connections", retry_after_seconds=1.0)
        self.transport.write(self.hooks.refuse(error))
        self.transport.close()

    def _note_progress(self) -> None:
        self.receiving.pop(self, None)
        self.receiving[self] = None

    def _expect_rest(self) -> None:
        limits = self.limits
        seconds = limits.refused_body_seconds if self._is_within_body else limits.header_seconds
        self._request_timer = self.loop.call_later(seconds, self._end, "no_request")

    def _end(self, reason: str) -> None:
        _logger.debug("connection_ended", extra={"reason": reason, "client": self.client})
        self._leave()
        self.transport.abort()  # close() would wait until the caller has read what was written

    def _leave(self) -> None:
        self.waiting.pop(self, None)
        self.receiving.pop(self, None)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
