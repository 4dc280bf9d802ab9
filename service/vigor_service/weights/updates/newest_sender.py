"""One sender per file: the newest one. The connection of an older one may be dead without a sign."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class SupersededError(Exception):
    """A newer sender, or the end of the update, cancelled the work."""


class NewestSender:
    """Runs the work of one sender at a time. A new one ends the older one, and begins once that has ended."""

    def __init__(self) -> None:
        self._writing = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None

    @property
    def is_active(self) -> bool:
        """Whether a sender is at work, or waits for an older one's end."""
        return self._sender is not None

    async def send(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in place of what ran before.

        Raises:
            SupersededError: it was ended by a newer sender, or by ``stop``.
            Exception: what the work raises.
        """
        self._end()
        sender = self._sender = asyncio.create_task(self._alone(work))
        try:
            await sender
        except asyncio.CancelledError:
            if self._sender is sender:  # cancelled by its own caller
                raise
            raise SupersededError from None
        finally:
            if self._sender is sender:
                self._sender = None

    async def stop(self) -> None:
        """End the sender, and return once nothing of it is written any more."""
        self._end()
        async with self._writing:
            pass

    async def _alone(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._writing:
            await work()

    def _end(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
