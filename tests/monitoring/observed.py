"""What the service exposes, and what dashboards and alerts ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from vigor_service.http.problems import CODES
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.observability.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "k8s/components/monitoring"
OBSERVING = ROOT / "docs/operations/observing.md"
needs_prometheus = pytest.mark.skipif(which("promtool") is None, reason="Prometheus is not installed: `make tools`")


def exposed() -> Metrics:
    """The metrics of a service that has not answered anything."""
    metrics = Metrics()
    metrics.expect_routes(["/v1/score"])
    metrics.expect_problems(CODES)
    metrics.watch_engines(
        lambda: [EngineStatus(number=0, is_up=True, weight_version=0, busy_seconds=0.0, num_batches=0, num_restarts=0)]
    )
    return metrics


def series_names() -> set[str]:
    """Every name that can be asked for."""
    return {sample.name for family in exposed().registry.collect() for sample in family.samples}


def panels() -> dict[str, dict[str, Any]]:
    """Dashboard and title -> the panel as Grafana gets it, rows left out."""
    return {
        f"{path.stem}: {panel['title']}": panel
        for path in sorted((MONITORING / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    }


def panel_queries(window: str) -> dict[str, str]:
    """Panel and legend -> the query, for all instances and over ``window``."""
    return {
        f"{name}, {target['legendFormat']}": target["expr"]
        .replace("$__rate_interval", window)
        .replace("$instance", ".*")
        for name, panel in panels().items()
        for target in panel["targets"]
    }


def rule_groups() -> list[dict[str, Any]]:
    """The groups of the PrometheusRule, as a plain rule file has them."""
    return yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]["groups"]


def alerts() -> dict[str, dict[str, Any]]:
    """Name -> alert."""
    return {rule["alert"]: rule for group in rule_groups() for rule in group["rules"]}


def without_thresholds(expression: str) -> str:
    """The values that an alert compares with numbers."""
    return re.sub(r"\s*(?:[<>]=?|[!=]=)\s*-?[\d.]+", "", expression)


def write_rules(directory: Path) -> Path:
    """Write the alerts as a plain rule file."""
    path = directory / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": rule_groups()}))
    return path
