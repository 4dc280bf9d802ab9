"""Components fit the pods that they are put beside."""

from __future__ import annotations

import re

from tests.k8s.rendering import Manifest, container, needs_kubectl, render, the, trainer_job
from vigor_service.observability.metrics import Metrics

pytestmark = needs_kubectl


def test_keda_scales_the_pods_and_nobody_else_counts_them() -> None:
    manifests = render("gpu", ("keda",))
    workload, scaling = the(manifests, "StatefulSet"), the(manifests, "ScaledObject")["spec"]
    assert "replicas" not in workload["spec"]
    assert scaling["scaleTargetRef"] == {
        "apiVersion": workload["apiVersion"],
        "kind": workload["kind"],
        "name": workload["metadata"]["name"],
    }
    assert 1 <= scaling["minReplicaCount"] < scaling["maxReplicaCount"]


def test_keda_asks_for_a_metric_of_the_service_in_its_namespace() -> None:
    manifests = render("gpu", ("keda",))
    (trigger,) = the(manifests, "ScaledObject")["spec"]["triggers"]
    named = set(re.findall(r"vigor_\w+", trigger["metadata"]["query"]))
    assert named
    assert named <= {family.name for family in Metrics().registry.collect()}
    namespace = the(manifests, "StatefulSet")["metadata"]["namespace"]
    assert f'namespace="{namespace}"' in trigger["metadata"]["query"]


def labels(workload: Manifest) -> dict[str, str]:
    return workload["spec"]["template"]["metadata"]["labels"]


def test_the_network_policy_lets_trainers_in_at_the_port_of_the_service() -> None:
    manifests = render("gpu")
    policy, workload = the(manifests, "NetworkPolicy")["spec"], the(manifests, "StatefulSet")
    assert policy["podSelector"]["matchLabels"].items() <= labels(workload).items()
    trainers, _ = policy["ingress"]
    (peer,) = trainers["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels(the(trainer_job(), "Job")).items()
    assert trainers["ports"] == [{"port": container(workload)["ports"][0]["name"]}]


def test_a_trainer_may_go_to_the_service() -> None:
    service = the(render("gpu"), "StatefulSet")
    policy = the(trainer_job(), "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels(the(trainer_job(), "Job")).items()
    to_service = policy["egress"][0]
    assert to_service["to"][0]["podSelector"]["matchLabels"].items() <= labels(service).items()
    assert to_service["ports"] == [{"port": container(service)["ports"][0]["containerPort"]}]
