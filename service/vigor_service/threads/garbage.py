"""When Python looks for objects that only point at each other: between large requests, not amid one.

It looks at young objects all the time, which is quick. A pass over the old ones takes 0.2 seconds where a large request
has become half a million objects, and Python would make several while that request is parsed: nothing else runs then.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

LOOK_SECONDS = 5.0
QUIET_BYTES = 1 << 24
"""Size of all bodies in progress below which a pass takes less than a hundredth of a second."""
LONGEST_SECONDS = 600.0
"""Maximum time between two passes, even while requests hold more: garbage would grow without bound."""

_NEVER = 1_000_000_000
_MIN_YOUNG_PASSES = 10  # as Python itself has it


class OldGarbage:
    """Collects old garbage on a thread of its own while requests hold little, instead of when Python would.

    From Python 3.14 on, which collects old garbage in small steps, it finds nothing to do.
    """

    def __init__(self, held_bytes: Callable[[], int], *, clock: Callable[[], float] = monotonic) -> None:
        self._held_bytes = held_bytes
        self._clock = clock
        self._collected = clock()
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="garbage", daemon=True)
        self._thresholds = gc.get_threshold()

    def start(self) -> None:
        """Stop Python from collecting old objects by itself."""
        gc.set_threshold(*self._thresholds[:2], _NEVER)
        self._thread.start()

    def stop(self) -> None:
        """Let Python collect old objects again."""
        self._is_over.set()
        self._thread.join()
        gc.set_threshold(*self._thresholds)

    def collect_if_quiet(self) -> bool:
        """Collect if requests hold little, or the last pass was ``LONGEST_SECONDS`` ago; return whether it did."""
        is_late = self._clock() - self._collected > LONGEST_SECONDS
        if gc.get_count()[2] < _MIN_YOUNG_PASSES or (self._held_bytes() > QUIET_BYTES and not is_late):
            return False
        gc.collect()
        self._collected = self._clock()
        return True

    def _run(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self.collect_if_quiet()
