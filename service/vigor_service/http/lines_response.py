"""A response that sends lines as they become ready. It knows the connection, but not the content of the lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from vigor_client.schemas.scoring import LINES_MEDIA_TYPE
from vigor_service.errors import ClientGoneError
from vigor_service.http.disconnect import cancel_on_disconnect

_logger = logging.getLogger(__name__)


class LinesResponse(Response):
    """Sends lines until they end. It stops if the client disconnects, or reads nothing for ``timeout_seconds``.

    ``on_client_gone`` is called in both of these cases.
    """

    media_type = LINES_MEDIA_TYPE

    def __init__(
        self, lines: AsyncGenerator[str], *, timeout_seconds: float, on_client_gone: Callable[[], None]
    ) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})  # otherwise nginx would buffer the lines
        del self.headers["Content-Length"]
        self._lines = lines
        self._timeout_seconds = timeout_seconds
        self._on_client_gone = on_client_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cancel_on_disconnect(Request(scope, receive), self._send_all(partial(self._send, send)))
        except (ClientGoneError, TimeoutError) as error:
            # The status is already sent, so the connection can only be ended.
            reason = "left" if isinstance(error, ClientGoneError) else "stalled"
            self._on_client_gone()
            _logger.info("stream_ended", extra={"client": reason})

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._lines) as lines:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for line in lines:
                await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self._timeout_seconds):
            await send(message)
