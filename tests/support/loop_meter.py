"""How much processor time the event loop spends before it comes back to whoever waits, by the system's account."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import thread_time

_TICK_SECONDS = 0.001


@dataclass
class LoopMeter:
    """``longest_seconds`` is the most that the loop's own thread has computed between two ticks of a millisecond."""

    longest_seconds: float = 0.0


@asynccontextmanager
async def loop_meter() -> AsyncIterator[LoopMeter]:
    """Measure the loop that runs this, until the block ends.

    Objects of tests before are kept out of garbage collections: looking through them is not the loop's own work.
    """
    meter = LoopMeter()
    gc.freeze()
    ticking = asyncio.create_task(_tick(meter))
    try:
        yield meter
    finally:
        ticking.cancel()


async def _tick(meter: LoopMeter) -> None:
    before = thread_time()
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        now = thread_time()
        meter.longest_seconds, before = max(meter.longest_seconds, now - before), now
