"""The component as a cluster gets it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from k8s.components.monitoring.dashboards import DASHBOARDS
from tests.monitoring.observed import MONITORING


def _can_render() -> bool:
    """Whether there is a kubectl whose kustomize knows components; older ones do not tell its version."""
    if which("kubectl") is None:
        return False
    asked = subprocess.run(["kubectl", "version", "--client", "--output=json"], capture_output=True, text=True)
    return "kustomizeVersion" in asked.stdout


needs_kubectl = pytest.mark.skipif(not _can_render(), reason="there is no kubectl of 1.24 or newer: `make tools`")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Kind -> object, of an overlay that has nothing but the component."""
    overlay = tmp_path_factory.mktemp("overlay")
    relative = Path(*[".."] * len(overlay.resolve().parts[1:]), *MONITORING.parts[1:])
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "vigor", "components": [str(relative)]}))
    built = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    return {item["kind"]: item for item in yaml.safe_load_all(built.stdout)}


@needs_kubectl
def test_it_is_a_monitor_rules_and_the_dashboards(rendered: dict[str, dict[str, Any]]) -> None:
    assert set(rendered) == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert {item["metadata"]["namespace"] for item in rendered.values()} == {"vigor"}


@needs_kubectl
def test_the_sidecar_of_grafana_finds_the_dashboards(rendered: dict[str, dict[str, Any]]) -> None:
    assert rendered["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}
    data = rendered["ConfigMap"]["data"]
    assert {name: json.loads(text) for name, text in data.items()} == {
        f"{name}.json": content for name, content in DASHBOARDS.items()
    }


@needs_kubectl
def test_pods_are_scraped_at_a_named_port_as_the_job_that_alerts_ask_for(rendered: dict[str, dict[str, Any]]) -> None:
    spec = rendered["PodMonitor"]["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    job = spec["selector"]["matchLabels"][spec["jobLabel"]]
    rules = [rule for group in rendered["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]
    assert any(f'up{{job="{job}"}}' in rule["expr"] for rule in rules)
