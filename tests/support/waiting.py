"""Waiting for what another thread or process does, with a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic

STEP_SECONDS = 0.01
DEADLINE_SECONDS = 20.0


def wait_until(condition: Callable[[], bool], *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Return once the condition holds; fail after the deadline."""
    end, pause = monotonic() + deadline_seconds, threading.Event()
    while not condition():
        assert monotonic() < end, f"still waiting after {deadline_seconds} seconds"
        pause.wait(STEP_SECONDS)


async def until(condition: Callable[[], bool], *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """`wait_until` for a condition that the event loop brings about."""
    async with asyncio.timeout(deadline_seconds):
        while not condition():
            await asyncio.sleep(0)
