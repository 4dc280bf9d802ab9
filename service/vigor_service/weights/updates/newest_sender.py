"""Keeps one sender per file: the newest one, because the connection of an older one may be dead unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class SupersededError(Exception):
    """A newer sender, or the end of the update, cancelled the work."""


class NewestSender:
    """Runs the work of one sender at a time. A new sender cancels the older one, and begins once that has ended."""

    def __init__(self) -> None:
        self._writing = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None

    @property
    def is_active(self) -> bool:
        """Whether a sender is working, or waiting for an older one to end."""
        return self._sender is not None

    async def send(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in place of an older sender's work.

        Raises:
            SupersededError: a newer sender or ``stop`` cancelled the work.
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
        """Cancel the sender, and return once it no longer writes."""
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
