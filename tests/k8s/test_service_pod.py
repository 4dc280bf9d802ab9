"""The pods of the service are told what the service understands, and may do no more than they have to."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest

from tests.k8s.rendering import K8S, OVERLAYS, Manifest, container, front, needs_kubectl, num_bytes, pod, render, the
from tests.k8s.settings import environment, settings_of
from vigor_client import __version__

pytestmark = needs_kubectl
ENDING_SECONDS = 15  # to remove staged files and to end, after the last request
RAY = "/tmp/ray"  # noqa: S108 - of the container, where Ray has its logs and its sockets
EXAMPLE_POD = (K8S / "overlays/example/pod.yaml").read_text()
STATEFUL_SETS = [name for name in OVERLAYS if name != "ray"]


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(request.param)


@pytest.fixture
def workload(manifests: list[Manifest]) -> Manifest:
    return front(manifests)


def mounts(workload: Manifest) -> dict[str, PurePosixPath]:
    """Volume -> where the container sees it."""
    return {mount["name"]: PurePosixPath(mount["mountPath"]) for mount in container(workload)["volumeMounts"]}


def test_ports_have_one_number_and_one_name(manifests: list[Manifest], workload: Manifest, tmp_path: Path) -> None:
    (port,) = (port for port in container(workload)["ports"] if port["name"] == "http")
    assert port["containerPort"] == settings_of(manifests, tmp_path).port
    for service in (item for item in manifests if item["kind"] == "Service"):
        assert service["spec"]["ports"] == [{"name": "http", "port": port["containerPort"], "targetPort": port["name"]}]
    probes = [container(workload)[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {probe["httpGet"]["port"] for probe in probes} == {port["name"]}


def test_a_service_that_ends_is_given_the_time_that_it_asks_for(
    manifests: list[Manifest], workload: Manifest, tmp_path: Path
) -> None:
    waits_seconds = container(workload)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drains_seconds = settings_of(manifests, tmp_path).drain_seconds
    assert waits_seconds + drains_seconds + ENDING_SECONDS <= pod(workload)["terminationGracePeriodSeconds"]


def test_whatever_selects_pods_selects_these(manifests: list[Manifest], workload: Manifest) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    services = [item["spec"]["selector"] for item in manifests if item["kind"] == "Service"]
    monitors = [item["spec"]["selector"]["matchLabels"] for item in manifests if item["kind"] == "PodMonitor"]
    assert len(services) == 2
    assert all(selector.items() <= labels for selector in (*services, *monitors))


@pytest.mark.parametrize("overlay", STATEFUL_SETS)
def test_each_pod_of_a_stateful_set_has_a_name_and_may_be_moved(overlay: str) -> None:
    manifests = render(overlay)
    workload = the(manifests, "StatefulSet")
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    budget = the(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    for selector in (budget, workload["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels
    headless = the(manifests, "Service", workload["spec"]["serviceName"])
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"]


def test_published_weights_and_keys_lie_on_volumes(manifests: list[Manifest], workload: Manifest) -> None:
    given, seen = environment(manifests), mounts(workload)
    assert seen[claimed_volume(manifests, workload)] in PurePosixPath(given["VIGOR_STATE_DIR"]).parents
    for name in ("VIGOR_SCORE_KEY_FILE", "VIGOR_PUBLISH_KEY_FILE"):
        assert PurePosixPath(given[name]).parent == seen["keys"]


def claimed_volume(manifests: list[Manifest], workload: Manifest) -> str:
    """Return the name of the volume that outlives the pod: of a claim for each pod, or of a claim in the manifests."""
    if templates := workload["spec"].get("volumeClaimTemplates"):
        (template,) = templates
        return template["metadata"]["name"]
    (volume,) = (volume for volume in pod(workload)["volumes"] if "persistentVolumeClaim" in volume)
    claim = the(manifests, "PersistentVolumeClaim")["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    return volume["name"]


def test_the_image_is_that_of_this_version(workload: Manifest) -> None:
    assert re.fullmatch(
        rf"(registry\.example\.com/)?vigor-service:{re.escape(__version__)}-(cpu|cuda|ray)",
        container(workload)["image"],
    )


def test_the_pod_runs_as_nobody_and_writes_only_to_volumes(workload: Manifest) -> None:
    specification, context = pod(workload), container(workload)["securityContext"]
    assert specification["securityContext"]["runAsNonRoot"]
    assert specification["securityContext"]["runAsUser"] == specification["securityContext"]["fsGroup"] != 0
    assert specification["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert specification["automountServiceAccountToken"] is False
    assert specification["enableServiceLinks"] is False
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_memory_and_every_temporary_directory_have_a_limit(workload: Manifest) -> None:
    resources = container(workload)["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]
    assert {"cpu", "memory"} <= resources["limits"].keys() & resources["requests"].keys()
    temporary = {volume["name"]: volume["emptyDir"] for volume in pod(workload)["volumes"] if "emptyDir" in volume}
    mounted = {str(mounts(workload)[name]) for name in temporary}
    assert mounted - {RAY} == {"/tmp", "/dev/shm", "/var/cache/vigor"}  # noqa: S108
    assert all(num_bytes(directory["sizeLimit"]) > 0 for directory in temporary.values())


def test_the_token_of_the_hub_is_a_file_that_may_be_missing() -> None:
    workload = the(render("example"), "StatefulSet")
    (path,) = (it["value"] for it in container(workload)["env"] if it["name"] == "HF_TOKEN_PATH")
    (secret,) = (volume["secret"] for volume in pod(workload)["volumes"] if volume["name"] == "hub")
    assert PurePosixPath(path).parent == mounts(workload)["hub"]
    assert secret["optional"] is True
    assert f"generic {secret['secretName']} --from-file={PurePosixPath(path).name}=" in EXAMPLE_POD


@pytest.mark.parametrize("overlay", STATEFUL_SETS)
def test_what_processes_share_is_a_small_part_of_the_memory(overlay: str) -> None:
    workload = the(render(overlay), "StatefulSet")
    (shared,) = (volume["emptyDir"] for volume in pod(workload)["volumes"] if volume["name"] == "shm")
    assert shared["medium"] == "Memory"
    memory = container(workload)["resources"]["limits"]["memory"]
    assert num_bytes(shared["sizeLimit"]) < num_bytes(memory) / 4


def test_a_gpu_is_asked_for_whole_and_used(tmp_path: Path) -> None:
    manifests = render("gpu")
    resources = container(the(manifests, "StatefulSet"))["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert settings_of(manifests, tmp_path).device == "cuda"
    assert the(manifests, "StatefulSet")["spec"]["replicas"] == 1


def test_without_a_gpu_none_is_asked_for(tmp_path: Path) -> None:
    manifests = render("cpu-dev")
    assert "nvidia.com/gpu" not in container(the(manifests, "StatefulSet"))["resources"]["limits"]
    assert settings_of(manifests, tmp_path).device == "cpu"
