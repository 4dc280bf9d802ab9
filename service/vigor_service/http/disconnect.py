"""Cancels work when its caller disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from vigor_service.errors import ClientGoneError

_T = TypeVar("_T")


async def cancel_on_disconnect(request: Request, work: Awaitable[_T]) -> _T:
    """Return the result of the work; cancel the work if the connection ends first.

    Raises:
        ClientGoneError: the connection ended first.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client disconnected; its work was removed from the queue")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    """Wait until the connection ends. The body of the request must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
