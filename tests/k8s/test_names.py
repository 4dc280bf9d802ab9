"""Names that differ between clusters: the overlay sets each in one place, and it arrives wherever it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.k8s.example_overlay import NAMES, NAMESPACE, render_example
from tests.k8s.rendering import K8S, Manifest, needs_kubectl, the, trainer_job

pytestmark = needs_kubectl
OPTIONAL = ("keda", "monitoring")
LEFT_OVER = re.compile(r'^vigor$|namespace="vigor"|\.vigor(\.svc|:|/|$)')


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return render_example(tmp_path_factory.mktemp("own"), OPTIONAL)


def texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - of a manifest
    """Return every text in a manifest, however deep; dashboards are files, and no manifest."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from () if str(name).endswith(".json") else texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def left_over(manifests: list[Manifest]) -> list[str]:
    return [text for text in texts(manifests) if LEFT_OVER.search(text)]


def test_no_manifest_keeps_the_namespace_of_the_base(manifests: list[Manifest]) -> None:
    assert left_over(manifests) == []
    assert {item["metadata"].get("namespace", NAMESPACE) for item in manifests} == {NAMESPACE}
    assert the(manifests, "Namespace")["metadata"]["name"] == NAMESPACE
    kinds = {item["kind"] for item in manifests}
    assert {"ScaledObject", "PodMonitor", "PrometheusRule", "NetworkPolicy", "StatefulSet"} <= kinds


def test_the_query_of_keda_asks_for_pods_of_the_namespace(manifests: list[Manifest]) -> None:
    (trigger,) = the(manifests, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"] == f'sum(vigor_queued_requests{{namespace="{NAMESPACE}"}})'


def test_a_query_that_keeps_its_namespace_is_seen(tmp_path: Path) -> None:
    assert left_over(render_example(tmp_path, OPTIONAL, replacements=[])) == [
        'sum(vigor_queued_requests{namespace="vigor"})'
    ]


def test_prometheus_is_looked_for_in_its_namespace(manifests: list[Manifest]) -> None:
    (trigger,) = the(manifests, "ScaledObject")["spec"]["triggers"]
    address = urlsplit(trigger["metadata"]["serverAddress"])
    assert (address.hostname, address.port) == (f"prometheus-operated.{NAMES['monitoring']}.svc", 9090)


def test_prometheus_and_the_collector_are_let_through_from_their_namespace(manifests: list[Manifest]) -> None:
    policy = the(manifests, "NetworkPolicy", "vigor-service")["spec"]
    for peers in (policy["ingress"][1]["from"], policy["egress"][1]["to"]):
        assert peers == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMES["monitoring"]}}}]
    dns = policy["egress"][0]["to"][0]
    assert dns["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}


def test_alerts_lead_to_the_runbooks_of_the_operator(manifests: list[Manifest]) -> None:
    rules = [rule for group in the(manifests, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    assert len(rules) > 1
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"{NAMES['runbooks']}#{rule['alert'].lower()}"


def test_names_that_are_only_copied_are_not_applied(manifests: list[Manifest]) -> None:
    assert "names" not in [item["metadata"]["name"] for item in manifests]


def test_the_overlay_ray_moves_to_another_namespace(tmp_path: Path) -> None:
    own = {"resources": ["../ray", "names.yaml"], "components": ["../../components/monitoring"], "patches": []}
    manifests = render_example(tmp_path, (), **own)
    assert left_over(manifests) == []
    assert the(manifests, "Namespace")["metadata"]["name"] == NAMESPACE


def test_a_training_run_names_no_namespace() -> None:
    assert left_over([the(trainer_job(), "Job")]) == []
    assert "namespace" not in the(trainer_job(), "Job")["metadata"]


def test_the_example_marks_every_name() -> None:
    text = (K8S / "overlays/example/names.yaml").read_text()
    for name, value in yaml.safe_load(text)["data"].items():
        assert f"  {name}: {value} # EDIT\n" in text
