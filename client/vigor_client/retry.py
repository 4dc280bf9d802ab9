"""Which failure is tried again, and after how many seconds: a pure policy, without clock, randomness or I/O.

Delays grow exponentially with full jitter (a random share of the whole delay), so that clients that failed together
do not return together. A ``Retry-After`` is waited for in full, with the jitter on top; where it does not fit into the
time that is left, the call fails at once instead of coming back too early.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

DEFAULT_MAX_RETRIES = 5
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0
TOTAL_SECONDS = 600.0

# With these codes the service itself says that it did not begin.
_REFUSED_AT_THE_DOOR = frozenset({"queue_full", "loading", "draining", "weights_applying"})
# Only a full update cures it, and waiting would hide that from whoever has to send one.
_NOT_CURED_BY_WAITING = frozenset({"weights_poisoned"})
# 502 and a 503 without our codes come from a proxy, which may have lost the service in the middle of the work.
_RETRIED_STATUSES = frozenset({429, 502, 503})


class Repeat(Enum):
    """When a call may be sent again after a failure."""

    NEVER = "never"
    """The answer is about this moment, or nobody waits for it."""
    IF_NOT_RECEIVED = "if_not_received"
    """Sending it twice does something twice."""
    ALWAYS = "always"
    """Sending it twice does the same as sending it once."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that may be worth another try."""

    acted_on: bool
    """Whether the service may have acted on the request: False only where it certainly has not."""
    retry_after_seconds: float = 0.0
    """What the service asked for, 0 if nothing."""


def refusal(status: int, code: str | None, *, retry_after_seconds: float = 0.0) -> Failure | None:
    """The failure that an answer means, or None if sending the same again would end the same."""
    if status not in _RETRIED_STATUSES or code in _NOT_CURED_BY_WAITING:
        return None
    return Failure(acted_on=code not in _REFUSED_AT_THE_DOOR, retry_after_seconds=retry_after_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Bounds of trying again. No attempt begins later than ``total_seconds``."""

    max_retries: int = DEFAULT_MAX_RETRIES
    first_delay_seconds: float = FIRST_DELAY_SECONDS
    longest_delay_seconds: float = LONGEST_DELAY_SECONDS
    total_seconds: float = TOTAL_SECONDS

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}; give 0 or more")

    def delay_seconds(
        self, failure: Failure, *, repeat: Repeat, retries: int, elapsed_seconds: float, jitter: float
    ) -> float | None:
        """Seconds until the next attempt, or None: give up.

        ``retries`` have been made before, ``elapsed_seconds`` have passed since the first attempt, ``jitter`` is a
        uniform random number in [0, 1).
        """
        if repeat is Repeat.NEVER or (repeat is Repeat.IF_NOT_RECEIVED and failure.acted_on):
            return None
        backoff_seconds = min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** min(retries, 30))
        delay_seconds = failure.retry_after_seconds + jitter * backoff_seconds
        if retries >= self.max_retries or elapsed_seconds + delay_seconds > self.total_seconds:
            return None
        return delay_seconds


def parse_retry_after(value: str | None) -> float:
    """Seconds in a ``Retry-After`` header; 0 where there is none, or one in another form (a date)."""
    try:
        seconds = float(value or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
