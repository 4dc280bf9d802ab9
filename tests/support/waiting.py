"""Waiting for what another thread or process does, with a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic

STEP_SECONDS, LONGEST_STEP_SECONDS = 0.01, 0.05
DEADLINE_SECONDS = 20.0


def wait_until(condition: Callable[[], bool], *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Return once the condition holds; fail after the deadline."""
    began, pause = monotonic(), threading.Event()
    while not condition():
        waited = monotonic() - began
        assert waited < deadline_seconds, f"still waiting after {deadline_seconds} seconds"
        pause.wait(min(max(STEP_SECONDS, waited / 10), LONGEST_STEP_SECONDS))  # a long wait asks less often


async def until(condition: Callable[[], bool], *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """`wait_until` for a condition that the event loop brings about."""
    async with asyncio.timeout(deadline_seconds):
        while not condition():
            await asyncio.sleep(0)
