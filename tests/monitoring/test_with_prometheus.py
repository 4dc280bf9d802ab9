"""A real Prometheus scrapes the running service under load: every panel and every alert finds its numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.monitoring.load import KINDS, MAX_QUEUED_TOKENS, SOMETIMES, Load
from tests.monitoring.observed import alerts, needs_prometheus, panel_queries, without_thresholds
from tests.monitoring.prometheus_process import Prometheus, prometheus_process
from tests.support.ray_service import needs_ray
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model
from tests.support.waiting import wait_until

WINDOW = "10s"
DATA_SECONDS = 30.0
OF_THE_LOAD = "VigorQueueSaturated"
"""An alert that the load may have made pending: the queue was full. It is evaluated again."""


@needs_prometheus
@pytest.mark.slow
@pytest.mark.parametrize("num_engines", [1, pytest.param(2, marks=needs_ray)])
def test_every_panel_and_alert_has_data_under_load(num_engines: int, tmp_path: Path) -> None:
    flags = {"model": save_tiny_checkpoint(tmp_path / "model"), "device": "cpu", "state-dir": tmp_path / "state"}
    flags |= {"max-batch-tokens": 512, "max-queued-tokens": MAX_QUEUED_TOKENS, "engines": num_engines}
    given = [str(part) for name, flag in flags.items() for part in (f"--{name}", flag)]
    with (
        service_process(tmp_path, *given, preloaded=num_engines == 1) as service,
        prometheus_process(tmp_path, service.http.base_url) as prometheus,
    ):
        _check_config(prometheus)
        load = Load(service.http, dict(tiny_model().state_dict()))
        queries = panel_queries(WINDOW)
        queries |= {name: without_thresholds(alert["expr"]) for name, alert in alerts().items()}
        with load.running():
            _wait_for_data(prometheus, queries)
            wait_until(lambda: set(load.answers) - SOMETIMES == KINDS)
        _wait_for_counts(prometheus, load)
        assert prometheus.query("vigor_engine_up") == [1.0] * num_engines
        assert prometheus.query("vigor_engine_weight_version") == [load.version] * num_engines
        wait_until(lambda: _states(prometheus)[OF_THE_LOAD] != ("ok", "pending"))
        assert _states(prometheus) == dict.fromkeys(alerts(), ("ok", "inactive"))
        service.stop()
        wait_until(lambda: prometheus.query(alerts()["VigorDown"]["expr"]) == [0.0])


def _states(prometheus: Prometheus) -> dict[str, tuple[str, str]]:
    return {rule["name"]: (rule["health"], rule["state"]) for rule in prometheus.rules()}


def _check_config(prometheus: Prometheus) -> None:
    checked = subprocess.run(["promtool", "check", "config", str(prometheus.config)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _wait_for_data(prometheus: Prometheus, queries: dict[str, str]) -> None:
    missing = dict(queries)

    def all_have_data() -> bool:
        for name in [name for name, query in missing.items() if prometheus.query(query)]:
            del missing[name]
        return not missing

    try:
        wait_until(all_have_data, deadline_seconds=DATA_SECONDS)
    finally:
        assert missing == {}


def _wait_for_counts(prometheus: Prometheus, load: Load) -> None:
    """What Prometheus counts is what the callers counted: no series came too late for its first requests."""
    counts = {
        f'vigor_requests_total{{route="{route}",code="{code}"}}': count for (route, code), count in load.answers.items()
    }
    counts["vigor_disconnects_total"] = load.answers["/v1/score/sample", 499]
    counts["vigor_weight_version"] = load.version
    for query, count in counts.items():
        wait_until(lambda query=query, count=count: prometheus.query(query) == [count])
