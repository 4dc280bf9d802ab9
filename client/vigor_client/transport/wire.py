"""The interface between the client and the network: the protocol ``Wire``, and its two implementations.

Every call is written once, as a coroutine over a ``Wire``. ``AsyncWire`` runs on asyncio. ``BlockingWire`` does its
work before it returns and never suspends, so ``run_blocking`` runs the same coroutine to its end without a loop.
This module does not know endpoints, retries, or what answers say.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx

from vigor_client.errors import MixedUpAnswerError
from vigor_client.schemas.scoring import BEAT_SECONDS, LINES_MEDIA_TYPE
from vigor_client.transport.connections import AsyncConnections, Connections

REQUEST_ID_HEADER = "X-Request-Id"

CONNECT_TIMEOUT_SECONDS = 10.0
SILENCE_BETWEEN_LINES_SECONDS = 4 * BEAT_SECONDS
"""Allowed silence within a streamed answer: three empty lines may be lost before the connection counts as dead."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request: ``chunks()`` yields it from the beginning, and is called once per attempt."""

    content_type: str
    num_bytes: int
    chunks: Callable[[], Iterator[bytes]]

    @classmethod
    def json(cls, text: str) -> Body:
        data = text.encode()
        return cls("application/json", len(data), lambda: iter((data,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCall:
    """One request. It must be idempotent, since it is sent again if an answer is lost.

    No attempt begins later than ``repeat_seconds`` after the first one; with 0 it is sent once.
    """

    method: str
    path: str
    timeout_seconds: float
    repeat_seconds: float = math.inf
    body: Body | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def timeout(self) -> httpx.Timeout:
        return httpx.Timeout(self.timeout_seconds, connect=min(CONNECT_TIMEOUT_SECONDS, self.timeout_seconds))

    @property
    def all_headers(self) -> dict[str, str]:
        if self.body is None:
            return self.headers
        described = {"Content-Type": self.body.content_type, "Content-Length": str(self.body.num_bytes)}
        return {**self.headers, **described}


TakeChunk = Callable[[httpx.Response, bytes], None]


class Wire(Protocol):
    """What a call may await. It raises httpx's errors, and ``MixedUpAnswerError`` for the answer to another request."""

    async def send(self, call: HttpCall) -> httpx.Response: ...
    async def stream(self, call: HttpCall, take: TakeChunk) -> httpx.Response:
        """Send ``call``; pass chunks of a streamed answer to ``take`` as they arrive, and read any other whole."""
        ...

    async def sleep(self, seconds: float) -> None: ...
    async def compute(self, function: Callable[[], T]) -> T: ...
    def clock_seconds(self) -> float: ...


class BlockingWire:
    """Sends on the calling thread."""

    def __init__(self, connections: Connections, *, silence_seconds: float = SILENCE_BETWEEN_LINES_SECONDS) -> None:
        self._connections = connections
        self._silence_seconds = silence_seconds

    async def send(self, call: HttpCall) -> httpx.Response:
        with self._answer(call) as response:
            response.read()
        return response

    async def stream(self, call: HttpCall, take: TakeChunk) -> httpx.Response:
        with self._answer(call) as response:
            if not comes_in_lines(response):
                response.read()
                return response
            _expect_beats(response, self._silence_seconds)
            for chunk in response.iter_bytes():
                take(response, chunk)
        return response

    @contextmanager
    def _answer(self, call: HttpCall) -> Generator[httpx.Response]:
        content = call.body.chunks() if call.body else None
        with self._connections.pool().stream(
            call.method, call.path, content=content, headers=call.all_headers, timeout=call.timeout
        ) as response:
            refuse_mixed_up(response, call)
            yield response

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def compute(self, function: Callable[[], T]) -> T:
        return function()

    def clock_seconds(self) -> float:
        return time.monotonic()


class AsyncWire:
    """Sends on asyncio; computations (checksums, casts) run on a thread."""

    def __init__(
        self, connections: AsyncConnections, *, silence_seconds: float = SILENCE_BETWEEN_LINES_SECONDS
    ) -> None:
        self._connections = connections
        self._silence_seconds = silence_seconds

    async def send(self, call: HttpCall) -> httpx.Response:
        async with self._answer(call) as response:
            await response.aread()
        return response

    async def stream(self, call: HttpCall, take: TakeChunk) -> httpx.Response:
        async with self._answer(call) as response:
            if not comes_in_lines(response):
                await response.aread()
                return response
            _expect_beats(response, self._silence_seconds)
            async for chunk in response.aiter_bytes():
                take(response, chunk)
        return response

    @asynccontextmanager
    async def _answer(self, call: HttpCall) -> AsyncGenerator[httpx.Response]:
        content = _in_threads(call.body.chunks()) if call.body else None
        pool = await self._connections.pool()
        async with pool.stream(
            call.method, call.path, content=content, headers=call.all_headers, timeout=call.timeout
        ) as response:
            refuse_mixed_up(response, call)
            yield response

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def compute(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)

    def clock_seconds(self) -> float:
        return time.monotonic()


def refuse_mixed_up(response: httpx.Response, call: HttpCall) -> None:
    """Check that an answer is to this request, before its body is read: httpx closes a connection left half read.

    Raises:
        MixedUpAnswerError: it carries the id of another request. An answer without an id, as from a proxy, is accepted.
    """
    sent, came = call.headers.get(REQUEST_ID_HEADER), response.headers.get(REQUEST_ID_HEADER)
    if sent is not None and came not in (None, sent):
        raise MixedUpAnswerError(
            f"an answer to another request: {call.method} {response.request.url} was sent with {REQUEST_ID_HEADER} "
            f"{sent} and answered with {came}; if a proxy in between replaces the header, have it pass the client's on",
            request_id=sent,
        )


def comes_in_lines(response: httpx.Response) -> bool:
    """Return whether an answer is streamed in lines: a service or proxy without this feature answers as a whole."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.is_success and media_type == LINES_MEDIA_TYPE


def _expect_beats(response: httpx.Response, silence_seconds: float) -> None:
    """Limit the silence within a streamed answer: a service that answers as a whole may be silent for much longer.

    httpx reads the timeouts of a request again when the reading of the body begins.
    """
    timeouts: dict[str, float] = response.request.extensions["timeout"]
    timeouts["read"] = min(timeouts["read"], silence_seconds)


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a ``BlockingWire`` to its end, on this thread.

    Safe inside a running event loop too: no loop is involved.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a coroutine over a blocking wire suspended")
