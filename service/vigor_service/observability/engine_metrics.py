"""The metric series of engines. Their values are read when metrics are collected, so no series outlives its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Status of one engine. Its totals continue across restarts; ``weight_version`` is None while it is not up."""

    number: int
    is_up: bool
    weight_version: int | None
    busy_seconds: float
    num_batches: int
    num_restarts: int


class EngineCollector(Collector):
    """Collects the series of all engines that ``read`` returns. There are no series until ``read`` is set."""

    def __init__(self) -> None:
        self.read: Callable[[], Sequence[EngineStatus]] = list

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; called by the registry."""
        engines = self.read()
        up = GaugeMetricFamily("vigor_engine_up", "1 while the engine accepts batches, else 0.", labels=["engine"])
        versions = GaugeMetricFamily(
            "vigor_engine_weight_version", "Version of the weights that the engine holds.", labels=["engine"]
        )
        busy = CounterMetricFamily(
            "vigor_engine_busy_seconds",
            "Time that the engine has computed; its rate is the share of time in use.",
            labels=["engine"],
        )
        batches = CounterMetricFamily(
            "vigor_engine_batches", "Number of batches that the engine has computed.", labels=["engine"]
        )
        restarts = CounterMetricFamily(
            "vigor_engine_restarts", "Number of times that the engine ended and was replaced.", labels=["engine"]
        )
        for engine in engines:
            label = [str(engine.number)]
            up.add_metric(label, engine.is_up)
            busy.add_metric(label, engine.busy_seconds)
            batches.add_metric(label, engine.num_batches)
            restarts.add_metric(label, engine.num_restarts)
            if engine.weight_version is not None:
                versions.add_metric(label, engine.weight_version)
        yield from (up, versions, busy, batches, restarts)
