"""Limits how much work may wait, and tells refused requests when to retry. Knows no order or content of the queue."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from vigor_service.errors import QueueFullError
from vigor_service.observability.metrics import Metrics

MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0
_MEMORY = 0.8  # weight of the old rate when a new measurement is averaged in


class Place:
    """The place of one request in the queue. Tokens added to an existing place are never refused."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self.num_tokens = 0

    def add(self, num_tokens: int) -> None:
        """Hold more tokens; a negative number gives tokens back."""
        self._count(num_tokens)
        self.num_tokens += num_tokens


class Admission:
    """Counts requests and tokens from admission to answer, and measures the rate at which they are answered."""

    def __init__(self, *, max_tokens: int, max_requests: int, metrics: Metrics) -> None:
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._metrics = metrics
        metrics.max_queued_tokens.set(max_tokens)
        metrics.max_queued_requests.set(max_requests)
        self._num_tokens = 0
        self._num_requests = 0
        self._tokens_per_second: float | None = None

    @contextmanager
    def hold(self, num_tokens: int) -> Generator[Place]:
        """Hold a place in the context, and release it at the end. A request above the limit is admitted when alone.

        Raises:
            QueueFullError: too many tokens or requests wait already. The error says when to retry, estimated from the
                measured rate.
        """
        self._refuse_when_full(num_tokens)
        place = Place(lambda added: self._count(0, added))
        self._count(1, 0)
        place.add(num_tokens)
        try:
            yield place
        finally:
            self._count(-1, -place.num_tokens)

    def observe_batch(self, num_tokens: int, seconds: float) -> None:
        """Update the measured rate with a finished batch."""
        rate = num_tokens / seconds
        before = rate if self._tokens_per_second is None else self._tokens_per_second
        self._tokens_per_second = _MEMORY * before + (1 - _MEMORY) * rate

    def expected_seconds(self, num_tokens: int) -> float | None:
        """Return the expected seconds for this many tokens at the measured rate; None before the first batch."""
        return num_tokens / self._tokens_per_second if self._tokens_per_second else None

    def _refuse_when_full(self, num_tokens: int) -> None:
        too_many_tokens = self._num_requests > 0 and self._num_tokens + num_tokens > self._max_tokens
        if too_many_tokens or self._num_requests >= self._max_requests:
            raise QueueFullError(
                f"{self._num_requests} requests with {self._num_tokens} tokens are queued already; retry later",
                retry_after_seconds=self._seconds_until_empty(),
            )

    def _seconds_until_empty(self) -> float:
        seconds = self.expected_seconds(self._num_tokens) or MIN_RETRY_SECONDS
        return min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _count(self, num_requests: int, num_tokens: int) -> None:
        self._num_requests += num_requests
        self._num_tokens += num_tokens
        self._metrics.queued_requests.set(self._num_requests)
        self._metrics.queued_tokens.set(self._num_tokens)
