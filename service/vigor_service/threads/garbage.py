"""Moves Python's collection of old garbage (reference cycles) to times between large requests.

Collecting young objects is quick, and stays with Python. A pass over old objects takes 0.2 seconds if a large request
has become half a million objects. Python would make several passes while that request is parsed, each of which blocks
all threads.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

LOOK_SECONDS = 5.0
QUIET_BYTES = 1 << 24
"""Total size of the bodies in progress, in bytes, up to which a pass takes less than 0.01 seconds."""
LONGEST_SECONDS = 600.0
"""Maximum time between two passes in seconds, even if requests hold more; else garbage could grow without bound."""

_NEVER = 1_000_000_000
_MIN_YOUNG_PASSES = 10  # Python's own default


class OldGarbage:
    """Collects old garbage on its own thread while requests hold little memory, instead of when Python would.

    Python 3.14 and later collect old garbage in small steps, so there it has nothing to do.
    """

    def __init__(self, held_bytes: Callable[[], int], *, clock: Callable[[], float] = monotonic) -> None:
        self._held_bytes = held_bytes
        self._clock = clock
        self._collected = clock()
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="garbage", daemon=True)
        self._thresholds = gc.get_threshold()

    def start(self) -> None:
        """Stop Python's own collection of old objects, and start the thread."""
        gc.set_threshold(*self._thresholds[:2], _NEVER)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and let Python collect old objects again."""
        self._is_over.set()
        self._thread.join()
        gc.set_threshold(*self._thresholds)

    def collect_if_quiet(self) -> bool:
        """Collect if requests hold little, or if the last pass was ``LONGEST_SECONDS`` ago. Return whether it did.

        It does nothing until there were enough passes over young objects.
        """
        is_late = self._clock() - self._collected > LONGEST_SECONDS
        if gc.get_count()[2] < _MIN_YOUNG_PASSES or (self._held_bytes() > QUIET_BYTES and not is_late):
            return False
        gc.collect()
        self._collected = self._clock()
        return True

    def _run(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self.collect_if_quiet()
