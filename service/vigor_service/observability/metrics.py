"""Prometheus metrics: names, units and buckets. Every label child exists from the start, so that rates begin at 0."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import product
from typing import TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import CompletionScore, CompletionStatus
from vigor_client.schemas.weights import UpdateEncoding, WeightState
from vigor_service.observability.engine_metrics import EngineCollector, EngineStatus
from vigor_service.observability.reward_health import group_health

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 256, 1024, 4096, 16384, 65536, 262144)
_NORMS = tuple(mantissa * 10.0**exponent for exponent in range(-2, 5) for mantissa in (1, 2, 5))
_CORRELATIONS = tuple(tenths / 10 for tenths in (*range(-9, 10, 2), 10))
_SPREADS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)
_USUAL_CODES = (200, 401, 403, 409, 413, 422, 429, 499, 500, 503, 504)
_MEMORY_KINDS = ("allocated", "reserved", "total")
UNMATCHED_ROUTE = "unmatched"
_Family = TypeVar("_Family", bound=MetricWrapperBase)


class Metrics:
    """All series of one service, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._build = Info(
            "vigor_build", "Version, model, dtype and device of the running service, as labels.", registry=self.registry
        )
        self.requests = self._counter(
            "vigor_requests", "Number of HTTP requests, by route and status code.", route=(), code=()
        )
        self.request_seconds = self._seconds(
            "vigor_request_seconds",
            "Time from the first byte of an HTTP request to the end of its answer, by route.",
            route=(),
        )
        self.rejections = self._counter(
            "vigor_rejections", "Number of requests that were refused or failed, by problem code.", code=()
        )
        self.disconnects = self._counter("vigor_disconnects", "Number of score requests whose client disconnected.")
        self.closed_connections = self._counter(
            "vigor_closed_connections", "Number of connections that were closed because too many were open."
        )
        self._add_load()
        self._add_weights()
        self._add_rewards()
        ProcessCollector(namespace="vigor", registry=self.registry)
        self.describe_build(model="", dtype="", device="")

    def _add_load(self) -> None:
        self.queue_seconds = self._seconds(
            "vigor_queue_seconds", "Time of a score request in the queue, until its first batch began."
        )
        self.compute_seconds = self._seconds(
            "vigor_compute_seconds", "Time of a score request from the start of its first batch to its scores."
        )
        self.tokens = self._counter("vigor_tokens", "Number of scored tokens, by kind.", kind=("prompt", "completion"))
        self.cached_scores = self._counter("vigor_cached_scores", "Number of scores taken from the score cache.")
        self.batch_sequences = self._sizes("vigor_batch_sequences", "Number of sequences in a batch.", _SEQUENCES)
        self.batch_tokens = self._sizes("vigor_batch_tokens", "Number of tokens in a batch.", _TOKENS)
        self.max_batch_tokens = self._gauge(
            "vigor_max_batch_tokens", "Maximum number of tokens in a batch now; lower after memory ran out."
        )
        self.queued_requests = self._gauge(
            "vigor_queued_requests", "Number of score requests admitted and not yet answered."
        )
        self.queued_tokens = self._gauge("vigor_queued_tokens", "Number of tokens admitted and not yet answered.")
        self.max_queued_requests = self._gauge(
            "vigor_max_queued_requests", "Maximum number of score requests admitted at once."
        )
        self.max_queued_tokens = self._gauge("vigor_max_queued_tokens", "Maximum number of tokens admitted at once.")
        self.waiting_requests = self._gauge(
            "vigor_waiting_requests", "Number of score requests in the queue, of which no batch has begun."
        )
        self.running_requests = self._gauge(
            "vigor_running_requests", "Number of score requests being computed, of which a batch has begun."
        )
        self.gathering_groups = self._gauge(
            "vigor_gathering_groups", "Number of groups whose samples have not all arrived."
        )
        self.gathering_samples = self._gauge(
            "vigor_gathering_samples", "Number of samples that wait for the rest of their group."
        )
        self._engines = EngineCollector()
        self.registry.register(self._engines)
        self.memory_bytes = self._gauge(
            "vigor_memory_bytes",
            "Memory of the GPU, or without one of this process and its machine, in bytes, by kind.",
            kind=_MEMORY_KINDS,
        )

    def _add_weights(self) -> None:
        self.weight_version = self._gauge("vigor_weight_version", "Version of the weights that are served.")
        self.weight_state = self._gauge(
            "vigor_weight_state",
            "State of the weights: 1 for the current state, 0 for the others.",
            state=get_args(WeightState),
        )
        self.weight_published = self._gauge(
            "vigor_weight_published_timestamp_seconds",
            "Time at which the served weights were published or loaded, as a Unix timestamp.",
        )
        self.weight_wait_seconds = self._seconds(
            "vigor_weight_wait_seconds", "Time that a score request waited until the weights that it names were served."
        )
        self.weight_update_active = self._gauge(
            "vigor_weight_update_active", "1 while a weight update is open, else 0."
        )
        self.weight_update_seconds = self._seconds(
            "vigor_weight_update_seconds",
            "Time of a weight update, by phase.",
            phase=("receive", "verify", "stage", "store", "swap"),
        )
        self.weight_update_bytes = self._counter(
            "vigor_weight_update_bytes",
            "Size of the files received for weight updates, in bytes, by encoding.",
            encoding=get_args(UpdateEncoding),
        )

    def _add_rewards(self) -> None:
        self.completions = self._counter(
            "vigor_completions", "Number of ranked completions, by status.", status=get_args(CompletionStatus)
        )
        self.tied_completions = self._counter(
            "vigor_tied_completions", "Number of ranked completions that share their rank with another one."
        )
        self.duplicate_completions = self._counter(
            "vigor_duplicate_completions", "Number of ranked completions identical to an earlier one in their group."
        )
        self.scaled_grad_norm = self._sizes("vigor_scaled_grad_norm", "Scaled gradient norm of a completion.", _NORMS)
        self.norm_spread = self._sizes(
            "vigor_norm_spread_ratio", "Standard deviation of a group's scaled norms, divided by their mean.", _SPREADS
        )
        self.length_correlation = self._sizes(
            "vigor_reward_length_correlation",
            "Spearman correlation of reward and length within a group.",
            _CORRELATIONS,
        )
        # rate() needs a sum that never falls, so prometheus_client exports none for a histogram with negative buckets.
        self.length_correlation_plus_one = self._counter(
            "vigor_reward_length_correlation_plus_one",
            "Sum over groups of 1 + the correlation of reward and length; it never falls.",
        )

    def describe_build(self, *, model: str, dtype: str, device: str) -> None:
        """Set the labels of the build; they are empty until the model is loaded."""
        self._build.info({"version": version("vigor-rl"), "model": model, "dtype": dtype, "device": device})

    def expect_routes(self, routes: Iterable[str]) -> None:
        """Create the series of these routes, so that they begin at 0."""
        for route in (*routes, UNMATCHED_ROUTE):
            self.request_seconds.labels(route)
            for code in _USUAL_CODES:
                self.requests.labels(route, code)

    def expect_problems(self, codes: Iterable[str]) -> None:
        """Create the series of these problem codes, so that they begin at 0."""
        for code in codes:
            self.rejections.labels(code)

    def observe_request(self, route: str, code: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests.labels(route, code).inc()
        self.request_seconds.labels(route).observe(seconds)

    def observe_problem(self, problem: Problem) -> None:
        """Count one request that was refused or failed."""
        self.rejections.labels(problem.code).inc()

    def observe_group(self, sequences: Sequence[Hashable], scores: Sequence[CompletionScore]) -> None:
        """Count the completions of one ranked group, and observe its health."""
        health = group_health(sequences, scores)
        for status, count in health.statuses.items():
            self.completions.labels(status).inc(count)
        self.tied_completions.inc(health.num_tied)
        self.duplicate_completions.inc(health.num_duplicates)
        for norm in health.scaled_norms:
            self.scaled_grad_norm.observe(norm)
        if health.norm_spread is not None:
            self.norm_spread.observe(health.norm_spread)
        if health.length_correlation is not None:
            self.length_correlation.observe(health.length_correlation)
            self.length_correlation_plus_one.inc(1 + health.length_correlation)

    def observe_publication(self, weight_version: int, published_at: datetime) -> None:
        """Set the version that is served, and the time of its publication."""
        self.weight_version.set(weight_version)
        self.weight_published.set(published_at.timestamp())

    def observe_weight_state(self, state: WeightState) -> None:
        """Set the gauge of this state to 1 and the others to 0."""
        for known in get_args(WeightState):
            self.weight_state.labels(known).set(known == state)

    def watch_memory(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Call ``read`` for the bytes of each kind of memory whenever metrics are collected."""
        for kind in _MEMORY_KINDS:
            self.memory_bytes.labels(kind).set_function(lambda kind=kind: read()[kind])

    def watch_engines(self, read: Callable[[], Sequence[EngineStatus]]) -> None:
        """Call ``read`` for the status of all engines whenever metrics are collected."""
        self._engines.read = read

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text exposition format."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, text: str, **labels: Sequence[str]) -> Histogram:
        family = Histogram(name, text, [*labels], buckets=_SECONDS, registry=self.registry)
        return _with_children(family, labels)

    def _sizes(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, **labels: Sequence[str]) -> Counter:
        return _with_children(Counter(name, text, [*labels], registry=self.registry), labels)

    def _gauge(self, name: str, text: str, **labels: Sequence[str]) -> Gauge:
        return _with_children(Gauge(name, text, [*labels], registry=self.registry), labels)


def _with_children(family: _Family, labels: Mapping[str, Sequence[str]]) -> _Family:
    """Create the series of all combinations of the labels' values."""
    for values in product(*labels.values()) if labels else ():
        family.labels(*values)
    return family
