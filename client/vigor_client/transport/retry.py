"""Decides which failures are retried, and after how many seconds: a pure policy, without clock, randomness or I/O.

Delays grow exponentially with full jitter (a random share of the whole delay), so that clients that failed together
do not retry together. A ``Retry-After`` is waited for in full, plus the jitter. If it does not fit into the remaining
time, the call fails at once instead of retrying too early.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

DEFAULT_MAX_RETRIES = 5
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 30.0
TOTAL_SECONDS = 600.0

# Only a full update cures it, and waiting would hide that from the trainer, which has to send one.
_NOT_CURED_BY_WAITING = frozenset({"weights_poisoned"})
_RETRIED_STATUSES = frozenset({429, 502, 503})
_CONFLICT = 409
_GATEWAY_TIMEOUT = 504


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that may be worth a retry."""

    retry_after_seconds: float = 0.0
    """Time that the service asks to wait, 0 if it does not say."""


def refusal(status: int, code: str | None, *, retry_after_seconds: float = 0.0) -> Failure | None:
    """Return the failure that an answer stands for, or None if the same request would be refused again.

    A conflict may pass if the service says when to retry. A 504 without a code of the service comes from a proxy that
    lost the answer.
    """
    may_pass = (
        status in _RETRIED_STATUSES
        or (status == _CONFLICT and retry_after_seconds > 0)
        or (status == _GATEWAY_TIMEOUT and code is None)
    )
    return Failure(retry_after_seconds) if may_pass and code not in _NOT_CURED_BY_WAITING else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits for retries. No attempt begins later than ``total_seconds`` after the first."""

    max_retries: int = DEFAULT_MAX_RETRIES
    first_delay_seconds: float = FIRST_DELAY_SECONDS
    longest_delay_seconds: float = LONGEST_DELAY_SECONDS
    total_seconds: float = TOTAL_SECONDS

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}; give 0 or more")

    def delay_seconds(
        self,
        failure: Failure,
        *,
        retries: int,
        elapsed_seconds: float,
        jitter: float,
        repeat_seconds: float = math.inf,
    ) -> float | None:
        """Return the seconds until the next attempt, or None to give up.

        ``retries`` have been made, ``elapsed_seconds`` have passed since the first attempt, and ``jitter`` is a uniform
        random number in [0, 1). ``repeat_seconds`` is the limit of this call, in addition to ``total_seconds``.
        """
        backoff_seconds = min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** min(retries, 30))
        delay_seconds = failure.retry_after_seconds + jitter * backoff_seconds
        limit_seconds = min(self.total_seconds, repeat_seconds)
        if retries >= self.max_retries or elapsed_seconds + delay_seconds >= limit_seconds:
            return None
        return delay_seconds


def parse_retry_after(value: str | None, *, now: datetime) -> float:
    """Return the seconds that a ``Retry-After`` header asks for, as a number or as a date; 0 where it is neither."""
    try:
        return max(0.0, _seconds(value or "", now))
    except (ValueError, OverflowError):
        return 0.0


def parse_date(value: str | None) -> datetime | None:
    """Return the time in a header such as ``Date``; None if it is missing or cannot be read."""
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _seconds(value: str, now: datetime) -> float:
    if (moment := parse_date(value)) is not None:
        return (moment - now).total_seconds()
    seconds = float(value)
    return seconds if math.isfinite(seconds) else 0.0
