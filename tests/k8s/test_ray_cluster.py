"""The Ray cluster of the overlay ray: room for the weights, ports that the policy names, engines that find a GPU."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.k8s.rendering import (
    ROOT,
    Manifest,
    container,
    engines,
    front,
    group,
    named_ports,
    needs_kubectl,
    num_bytes,
    pod,
    render,
    the,
)
from tests.k8s.settings import environment, settings_of
from vigor_service.cluster.packing import CHUNK_BYTES

pytestmark = needs_kubectl
PAGE = (ROOT / "docs/scaling.md").read_text()
GROUPS = ("headGroupSpec", "workerGroupSpecs")
GIB = 1 << 30
CHUNKS_BYTES = 4 * CHUNK_BYTES  # those that are written while earlier ones are still given back
SHARED_BYTES = 256 << 20  # of /dev/shm, for torch and NCCL
PROCESSES_BYTES = 4 * GIB
BETWEEN_NODES = ("port", "node-manager-port", "object-manager-port", "runtime-env-agent-port")
CLOSED = {8265: "dashboard", 10001: "Ray Client", 8080: "metrics", 52365: "dashboard agent"}
QWEN_1_5B = Qwen2Config(
    hidden_size=1536,
    num_hidden_layers=28,
    intermediate_size=8960,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151_936,
    tie_word_embeddings=True,
)
"""The shapes of Qwen/Qwen2.5-1.5B-Instruct, which the overlay names."""


@pytest.fixture
def manifests() -> list[Manifest]:
    return copy.deepcopy(render("ray"))


@pytest.fixture
def cluster(manifests: list[Manifest]) -> Manifest:
    return the(manifests, "RayCluster")


@pytest.fixture
def policy(manifests: list[Manifest]) -> Manifest:
    return the(manifests, "NetworkPolicy", "vigor-ray")["spec"]


def num_parameters() -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Qwen2ForCausalLM(QWEN_1_5B).parameters())


# ---------------------------------------------------------------------------------------------- memory


def needed_bytes(weight_bytes: int) -> dict[str, int]:
    """Return the formula of docs/scaling.md: what the object store, /dev/shm and a pod need for these weights."""
    store = 2 * weight_bytes + CHUNKS_BYTES
    shared = store + SHARED_BYTES
    return {"store": store, "shm": shared, "memory": weight_bytes + shared + PROCESSES_BYTES}


def given_bytes(cluster: Manifest, name: str) -> dict[str, int]:
    workload = group(cluster, name)
    (shared,) = (volume["emptyDir"] for volume in pod(workload)["volumes"] if volume["name"] == "shm")
    assert shared["medium"] == "Memory"
    return {
        "store": int(workload["spec"]["rayStartParams"]["object-store-memory"]),
        "shm": num_bytes(shared["sizeLimit"]),
        "memory": num_bytes(container(workload)["resources"]["limits"]["memory"]),
    }


def too_small(cluster: Manifest, weight_bytes: int) -> set[str]:
    """Return what has less room than these weights need: the part, and the group of pods."""
    needed = needed_bytes(weight_bytes)
    return {
        f"{part} of {name}"
        for name in GROUPS
        for part, given in given_bytes(cluster, name).items()
        if given < needed[part] or (part == "shm" and given < given_bytes(cluster, name)["store"] + SHARED_BYTES)
    }


def test_the_weights_of_the_model_have_room(cluster: Manifest) -> None:
    assert too_small(cluster, 2 * num_parameters()) == set()


@pytest.mark.parametrize("name", GROUPS)
def test_a_store_that_is_too_small_is_seen(cluster: Manifest, name: str) -> None:
    group(cluster, name)["spec"]["rayStartParams"]["object-store-memory"] = str(6 * GIB)
    assert too_small(cluster, 2 * num_parameters()) == {f"store of {name}"}


def test_a_store_that_shared_memory_does_not_hold_is_seen(cluster: Manifest) -> None:
    group(cluster, "headGroupSpec")["spec"]["rayStartParams"]["object-store-memory"] = str(8 * GIB)
    assert too_small(cluster, 2 * num_parameters()) == {"shm of headGroupSpec"}


def test_a_larger_model_needs_more(cluster: Manifest) -> None:
    assert len(too_small(cluster, 2 * 3_000_000_000)) == 2 * len(GROUPS) + 2


def test_the_page_has_the_formula_and_the_example() -> None:
    weight_bytes = 2 * num_parameters()
    needed = needed_bytes(weight_bytes)
    for part, name in {"store": "object-store-memory", "shm": "/dev/shm", "memory": "memory"}.items():  # noqa: S108
        assert re.search(rf"^\| `{name}` .*\| {needed[part] / GIB:.1f} GiB \|", PAGE, re.MULTILINE), name
    assert f"{num_parameters():,} parameters" in PAGE
    assert f"{weight_bytes / GIB:.1f} GiB" in PAGE


# ----------------------------------------------------------------------------------------------- ports


def ports_of(cluster: Manifest) -> set[int]:
    """Return the ports at which the nodes of the cluster listen for each other."""
    ports = set[int]()
    for name in GROUPS:
        given = group(cluster, name)["spec"]["rayStartParams"]
        ports |= {int(given[port]) for port in BETWEEN_NODES if port in given}
        ports |= set(range(int(given["min-worker-port"]), int(given["max-worker-port"]) + 1))
    return ports


def test_every_port_of_ray_is_fixed(cluster: Manifest) -> None:
    head, workers = (group(cluster, name)["spec"]["rayStartParams"] for name in GROUPS)
    assert set(BETWEEN_NODES) <= head.keys()
    assert {name: workers[name] for name in BETWEEN_NODES[1:]} == {name: head[name] for name in BETWEEN_NODES[1:]}


def test_the_policy_names_the_ports_of_ray_and_no_other(cluster: Manifest, policy: Manifest) -> None:
    (ingress,) = policy["ingress"]
    assert named_ports(ingress) == named_ports(policy["egress"][0]) == ports_of(cluster)
    assert not named_ports(ingress) & CLOSED.keys()


@pytest.mark.parametrize("name", GROUPS)
def test_a_port_that_no_policy_names_is_seen(cluster: Manifest, policy: Manifest, name: str) -> None:
    group(cluster, name)["spec"]["rayStartParams"]["node-manager-port"] = "6400"
    assert ports_of(cluster) - named_ports(policy["ingress"][0]) == {6400}


def test_only_pods_of_the_cluster_reach_the_ports_of_ray(cluster: Manifest, policy: Manifest) -> None:
    pods = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    assert policy["podSelector"] == pods
    assert policy["ingress"][0]["from"] == policy["egress"][0]["to"] == [{"podSelector": pods}]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def test_the_dashboard_is_closed(cluster: Manifest) -> None:
    given = group(cluster, "headGroupSpec")["spec"]["rayStartParams"]
    assert given["include-dashboard"] == "false"
    assert given["dashboard-host"] == "127.0.0.1"


def test_calls_carry_a_token_that_is_in_no_file(cluster: Manifest) -> None:
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_TOKEN" not in str(cluster)


# --------------------------------------------------------------------------------------------- engines


def test_each_engine_finds_a_gpu_within_the_bounds(manifests: list[Manifest], tmp_path: Path) -> None:
    settings, workers = settings_of(manifests, tmp_path), engines(manifests)
    gpus = int(container(workers)["resources"]["limits"]["nvidia.com/gpu"])
    group_of_pods = workers["spec"]
    assert group_of_pods["minReplicas"] <= group_of_pods["replicas"] <= group_of_pods["maxReplicas"]
    assert settings.engines == group_of_pods["replicas"] * gpus
    assert (settings.device, settings.ray_address) == ("cuda", "auto")
    assert container(workers)["resources"]["requests"]["nvidia.com/gpu"] == str(gpus)


def test_no_engine_lands_beside_the_service(manifests: list[Manifest]) -> None:
    head = front(manifests)
    assert head["spec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in container(head)["resources"]["limits"]


def test_no_service_leads_to_an_engine(manifests: list[Manifest]) -> None:
    labels = engines(manifests)["spec"]["template"]["metadata"]["labels"].items()
    selectors = [item["spec"]["selector"] for item in manifests if item["kind"] == "Service"]
    assert not [selector for selector in selectors if selector.items() <= labels]


def test_an_engine_stays_while_another_is_moved(manifests: list[Manifest]) -> None:
    budget, workers = the(manifests, "PodDisruptionBudget")["spec"], engines(manifests)
    assert budget["selector"]["matchLabels"].items() <= workers["spec"]["template"]["metadata"]["labels"].items()
    assert "maxUnavailable" not in budget  # which Kubernetes takes only where there is a scale
    assert 0 < budget["minAvailable"] < workers["spec"]["minReplicas"]


def test_an_engine_may_do_no_more_than_the_service(manifests: list[Manifest]) -> None:
    head, workers = front(manifests), engines(manifests)
    assert pod(workers)["securityContext"] == pod(head)["securityContext"]
    assert container(workers)["securityContext"] == container(head)["securityContext"]
    assert container(workers)["image"] == container(head)["image"]
    assert pod(workers)["automountServiceAccountToken"] is pod(workers)["enableServiceLinks"] is False
    assert not [volume for volume in pod(workers)["volumes"] if "emptyDir" not in volume]
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod(workers)["volumes"])
    assert "envFrom" not in container(workers)


def test_an_engines_probes_ask_the_node_manager(manifests: list[Manifest]) -> None:
    workers = engines(manifests)
    (port,) = container(workers)["ports"]
    assert str(port["containerPort"]) == workers["spec"]["rayStartParams"]["node-manager-port"]
    probes = [container(workers)[f"{name}Probe"]["tcpSocket"]["port"] for name in ("readiness", "liveness")]
    assert probes == [port["name"], port["name"]]


# -------------------------------------------------------------------------------------------- the head


def test_the_service_is_probed_and_ends_as_in_the_base(manifests: list[Manifest]) -> None:
    head, alone = front(manifests), front(render("gpu"))
    for name in ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        assert container(head)[name] == container(alone)[name]
    assert pod(head)["securityContext"] == pod(alone)["securityContext"]
    assert container(head)["securityContext"] == container(alone)["securityContext"]


def test_the_autoscaler_alone_may_ask_kubernetes(manifests: list[Manifest], cluster: Manifest) -> None:
    head, autoscaler = front(manifests), cluster["spec"]["autoscalerOptions"]
    (token,) = (volume["name"] for volume in pod(head)["volumes"] if "projected" in volume)
    assert token in {mount["name"] for mount in autoscaler["volumeMounts"]}
    assert token not in {mount["name"] for mount in container(head)["volumeMounts"]}
    assert pod(head)["automountServiceAccountToken"] is False
    assert autoscaler["securityContext"] == container(head)["securityContext"]
    assert autoscaler["resources"]["limits"] == autoscaler["resources"]["requests"]


def test_the_ray_of_the_cluster_is_that_of_the_image(cluster: Manifest) -> None:
    assert f"ray=={cluster['spec']['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def started(head: Manifest, directory: Path, *, ray_starts: bool) -> str:
    """Run the container's command, with programs that only say how they were called; return what they said."""
    for name, code in {"ray": 0 if ray_starts else 1, "vigor-service": 0}.items():
        program = directory / name
        program.write_text(f'#!/bin/bash\necho "{name}: $*"\nexit {code}\n')
        program.chmod(0o755)
    told = {"KUBERAY_GEN_RAY_START_CMD": "ray start --head  --block  --num-cpus=0 "}  # as KubeRay writes it
    command = [*container(head)["command"], *container(head)["args"]]
    paths = {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(command, env=paths | told, capture_output=True, text=True, timeout=30, check=False).stdout


def test_the_service_starts_once_ray_has(manifests: list[Manifest], tmp_path: Path) -> None:
    head = front(manifests)
    assert head["spec"]["template"]["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    assert started(head, tmp_path, ray_starts=True) == "ray: start --head --num-cpus=0\nvigor-service: \n"
    assert started(head, tmp_path, ray_starts=False) == "ray: start --head --num-cpus=0\n"


def test_only_the_service_is_told_settings(manifests: list[Manifest]) -> None:
    assert environment(manifests).keys() >= {"VIGOR_ENGINES", "VIGOR_RAY_ADDRESS"}
    named = {variable["name"] for variable in container(engines(manifests))["env"]}
    assert named == {"OMP_NUM_THREADS", "RAY_USAGE_STATS_ENABLED"}


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")


@needs_ray
@pytest.mark.parametrize("name", GROUPS)
def test_every_parameter_is_one_of_ray_start(cluster: Manifest, name: str) -> None:
    from ray.scripts.scripts import start  # pyright: ignore[reportMissingTypeStubs]

    options = {option for parameter in start.params for option in parameter.opts}
    assert {f"--{parameter}" for parameter in group(cluster, name)["spec"]["rayStartParams"]} <= options
