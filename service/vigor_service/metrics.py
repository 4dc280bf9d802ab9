"""Prometheus metrics: names, units and buckets. Every label child exists from the start, so that rates begin at 0."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 256, 1024, 4096, 16384, 65536, 262144)
_USUAL_CODES = (200, 401, 403, 409, 413, 422, 429, 499, 500, 503, 504)
UNMATCHED_ROUTE = "unmatched"


class Metrics:
    """All series of one service, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("vigor_requests", "Requests.", ["route", "code"], registry=self.registry)
        self.request_seconds = self._seconds("vigor_request_seconds", "From first byte to answer.", ["route"])
        self.disconnects = self._counter("vigor_disconnects", "Score requests whose client went away.")
        self.queue_seconds = self._seconds("vigor_queue_seconds", "A score request, until its first batch began.")
        self.compute_seconds = self._seconds("vigor_compute_seconds", "A score request, from its first batch on.")
        self.tokens = Counter("vigor_tokens", "Tokens that were scored.", ["kind"], registry=self.registry)
        self.cached_scores = self._counter("vigor_cached_scores", "Scores that were known from an earlier request.")
        self.batch_sequences = self._sizes("vigor_batch_sequences", "Sequences of a batch.", _SEQUENCES)
        self.batch_tokens = self._sizes("vigor_batch_tokens", "Tokens of a batch, without padding.", _TOKENS)
        self.max_batch_tokens = self._gauge("vigor_max_batch_tokens", "Tokens that a batch may have now.")
        self.queued_requests = self._gauge("vigor_queued_requests", "Score requests admitted and not yet answered.")
        self.queued_tokens = self._gauge("vigor_queued_tokens", "Tokens admitted and not yet answered.")
        self.gathering_groups = self._gauge("vigor_gathering_groups", "Groups whose samples have not all come.")
        self.gathering_samples = self._gauge("vigor_gathering_samples", "Samples that wait for others of their groups.")
        self.weight_version = self._gauge("vigor_weight_version", "The version that is served.")
        self.weight_update_seconds = self._seconds("vigor_weight_update_seconds", "Parts of an update.", ["phase"])
        for kind in ("prompt", "completion", "padding"):
            self.tokens.labels(kind)
        for phase in ("receive", "verify", "store", "swap"):
            self.weight_update_seconds.labels(phase)

    def expect_routes(self, routes: Iterable[str]) -> None:
        """Create the series of these routes."""
        for route in (*routes, UNMATCHED_ROUTE):
            self.request_seconds.labels(route)
            for code in _USUAL_CODES:
                self.requests.labels(route, code)

    def observe_request(self, route: str, code: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests.labels(route, code).inc()
        self.request_seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, text: str, labels: Iterable[str] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=_SECONDS, registry=self.registry)

    def _sizes(self, name: str, text: str, buckets: tuple[int, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
