"""HTTP/1.x beyond uvicorn: limits of URL and headers, answers to input that is not HTTP, half-closed connections.

Knows nothing about what is requested. The hooks answer input that cannot be parsed, and the connection ends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vigor_service.errors import HeadersTooLargeError, MalformedHttpError, ServiceError, UrlTooLongError

HALF_CLOSED_SECONDS = 2.0
"""Maximum time for an answer to a half-closed HTTP/1.0 connection, which cannot be probed."""

_CHECK_SECONDS = 0.25
_STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"
_OPEN_END = 1 << 62  # content length that stands for an unknown one


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Maximum sizes of the parts of a request before its body."""

    max_url_bytes: int = 8 << 10
    max_header_bytes: int = 32 << 10


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks of the protocol."""

    refuse: Callable[[ServiceError], bytes]
    """Returns the whole HTTP answer to input that cannot be read."""

    on_too_many: Callable[[], None] = lambda: None
    """Called for each connection that is closed because there are too many."""


class HeadBoundedProtocol(HttpToolsProtocol):
    """Refuses input that cannot be read or is too large; answers HTTP/1.0 and half-closed connections."""

    head_limits: ClassVar[HeadLimits]
    hooks: ClassVar[Hooks]
    is_refused = False
    _num_head_bytes = 0
    _num_unparsed_bytes = 0  # since the parser's last callback: it buffers them and copies them at each read
    _fault: ServiceError | None = None

    # ---------------------------------------------------------------------------------------------- input

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.is_refused:
            return
        self._num_unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)  # pyright: ignore[reportOptionalMemberAccess] - None once the connection is lost
        except httptools.HttpParserUpgrade:
            return  # no other protocol is supported: the request is answered without the upgrade
        except httptools.HttpParserError as error:
            self._refuse(self._fault or MalformedHttpError(f"this is not HTTP/1.1: {error}"))
            return
        if self._num_unparsed_bytes > self.head_limits.max_header_bytes:
            self._refuse(self._headers_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_head_bytes = self._num_unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._num_unparsed_bytes = 0
        limit = self.head_limits.max_url_bytes
        if len(self.url) + len(url) > limit:
            self._fault = UrlTooLongError(f"the URL has more than {limit} bytes", limit=limit)
            raise self._fault
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_unparsed_bytes = 0
        self._num_head_bytes += len(name) + len(value) + len(b": \r\n")
        if self._num_head_bytes > self.head_limits.max_header_bytes:
            self._fault = self._headers_too_large()
            raise self._fault
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.url == b"*":  # OPTIONS for the whole service
            self.url = b"/"
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_unparsed_bytes = 0
        super().on_body(body)

    def _headers_too_large(self) -> ServiceError:
        limit = self.head_limits.max_header_bytes
        return HeadersTooLargeError(f"the headers have more than {limit} bytes", limit=limit)

    @property
    def _last_cycle(self) -> RequestResponseCycle | None:
        """The latest request; None before the first one, which uvicorn's type does not allow for."""
        return self.cycle

    # -------------------------------------------------------------------------------------------- refusals

    def _refuse(self, error: ServiceError) -> None:
        """Send the error after the answers that are still due, and read no more."""
        self.is_refused = True
        cycle = self._last_cycle
        if cycle is not None and cycle.more_body:  # its body cannot be read
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            return
        self.transport.write(self.hooks.refuse(error))
        self.transport.write_eof()  # close() would reset a caller that still sends, and lose the answer

    # --------------------------------------------------------------------------------------------- answers

    def eof_received(self) -> bool:  # type: ignore[override] - asyncio's signature; uvicorn returns nothing
        """Return whether an answer is due to a caller that closed its sending half: then the connection stays open."""
        cycle = self._last_cycle
        if self.is_refused or cycle is None or cycle.more_body or cycle.response_started:
            return False
        cycle.keep_alive = False
        if cycle.scope["http_version"] == "1.0":
            self.loop.call_later(HALF_CLOSED_SECONDS, self._end_unless_answered, cycle)
        else:
            self._ask_whether_it_listens(cycle)
        return True

    def _ask_whether_it_listens(self, cycle: RequestResponseCycle) -> None:
        """Send an interim response (100) as a probe: a closed connection rejects it, a half-closed one ignores it."""
        if not self.pipeline:
            self.transport.write(_STILL_THERE)
        self._check_whether_it_listens(cycle)

    def _check_whether_it_listens(self, cycle: RequestResponseCycle) -> None:
        if cycle.response_complete or self.transport.is_closing():
            return
        connection: socket.socket = self.transport.get_extra_info("socket")
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(_CHECK_SECONDS, self._check_whether_it_listens, cycle)

    def _end_unless_answered(self, cycle: RequestResponseCycle) -> None:
        if not cycle.response_started:
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - an ASGI application
        super()._start_asgi_task(cycle, _without_chunks(app, cycle) if cycle.scope["http_version"] == "1.0" else app)


def _without_chunks(app: Any, cycle: RequestResponseCycle) -> Any:  # noqa: ANN401 - ASGI applications
    """Return the application for HTTP/1.0, which has no chunks: an answer without length ends with its connection."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plainly(message: Message) -> None:
            if message["type"] == "http.response.start" and not _has_length(message):
                cycle.chunked_encoding, cycle.expected_content_length = False, _OPEN_END
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last and cycle.expected_content_length > _OPEN_END >> 1:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plainly)

    return run


def _has_length(message: Message) -> bool:
    return any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
