"""How long a connection may keep the server waiting, and how many may. Knows nothing about what is asked.

A connection waits from its beginning, and from the end of each answer, until the headers of the next request are there.
Uvicorn limits the pause between two requests, and nothing else of this.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What ends a connection."""

    header_seconds: float = 10.0
    """From a connection's beginning, or a later request's first byte, until the headers are there."""

    refused_body_seconds: float = 60.0
    """For the rest of a body whose request was answered before it came; a caller may send all before it listens."""

    stalled_answer_seconds: float = 60.0
    """While the caller takes nothing of an answer that fills the socket's buffers."""

    max_waiting: int = 512
    """Of more waiting connections, the one that has waited longest is closed."""


DEFAULT_LIMITS = ConnectionLimits()


def bounded_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol under these limits, for the connections of one server."""

    class Protocol(_BoundedProtocol):
        pass

    Protocol.limits, Protocol.waiting = limits, {}
    return Protocol


class _BoundedProtocol(HttpToolsProtocol):
    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict[_BoundedProtocol, None]]  # the one that has waited longest comes first
    _is_within_body = False
    _request_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_waiting()
        self._expect_rest()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # What came is a part of the headers, or of a body that nobody reads: uvicorn has stopped its clock of idle
        # connections, and has none for either.
        if self._is_waiting and self._request_timer is None:
            self._expect_rest()

    def on_headers_complete(self) -> None:
        self.waiting.pop(self, None)
        self._request_timer = _cancelled(self._request_timer)
        self._is_within_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._request_timer = _cancelled(self._request_timer)
        self._is_within_body = False
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
        self.waiting.pop(self, None)
        self._request_timer = _cancelled(self._request_timer)
        self._answer_timer = _cancelled(self._answer_timer)
        super().connection_lost(exc)

    @property
    def _is_waiting(self) -> bool:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return not is_answering and not self.transport.is_closing()

    def _begin_waiting(self) -> None:
        self.waiting[self] = None
        if len(self.waiting) > self.limits.max_waiting:
            next(iter(self.waiting))._end("too_many_waiting")

    def _expect_rest(self) -> None:
        limits = self.limits
        seconds = limits.refused_body_seconds if self._is_within_body else limits.header_seconds
        self._request_timer = self.loop.call_later(seconds, self._end, "no_request")

    def _end(self, reason: str) -> None:
        _logger.debug("connection_ended reason=%s client=%s", reason, self.client)
        self.waiting.pop(self, None)
        self.transport.abort()  # closing would wait until the caller has taken what was written


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
