"""The manifests as `kubectl kustomize` renders them: each overlay alone, and with every choice of components."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
RENDER_SECONDS = 30
_UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}
OF_STATEFUL_SETS = {"keda"}
"""Components that count the pods of the StatefulSet, which the overlay ray does not have."""

OLDEST_KUSTOMIZE = 5  # kubectl 1.27: components, and labels that reach templates


def _why_not_here() -> str | None:
    if shutil.which("kubectl") is None:
        return "kubectl is not installed: make tools"
    asked = ["kubectl", "version", "--client", "--output=json"]
    shown = subprocess.run(asked, capture_output=True, text=True, timeout=RENDER_SECONDS, check=True)
    kustomize = json.loads(shown.stdout).get("kustomizeVersion", "v0")  # kubectl tells it since 1.24
    if int(kustomize.removeprefix("v").partition(".")[0]) < OLDEST_KUSTOMIZE:
        return "kubectl is older than 1.27, and renders no components"
    return None


needs_kubectl = pytest.mark.skipif(_why_not_here() is not None, reason=str(_why_not_here()))


def choices() -> list[tuple[str, tuple[str, ...]]]:
    """Return each overlay with each selection of the components that it does not include itself."""
    return [(overlay, subset) for overlay in OVERLAYS for subset in _subsets(_left_out(overlay))]


@cache
def render(overlay: str, components: Sequence[str] = ()) -> list[Manifest]:
    """Return the manifests of an overlay with these components, as somebody's own overlay would take them."""
    with TemporaryDirectory() as name:
        kustomization = {
            "namespace": "vigor",
            "resources": [relative(K8S / "overlays" / overlay, name)],
            "components": [relative(K8S / "components" / component, name) for component in components],
        }
        (Path(name) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return render_directory(Path(name))


def render_directory(directory: Path) -> list[Manifest]:
    """Return the manifests of a kustomization."""
    done = subprocess.run(
        ["kubectl", "kustomize", directory], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


TRAINER_JOB = K8S / "examples/trainer-job"


@cache
def trainer_job() -> list[Manifest]:
    """Return the manifests of the example of a training run: the Job, and what all runs share."""
    return [*yaml.safe_load_all((TRAINER_JOB / "job.yaml").read_text()), *render_directory(TRAINER_JOB)]


def the(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the one manifest of this kind, and name if several are of it."""
    (found,) = (item for item in manifests if item["kind"] == kind and name in (None, item["metadata"].get("name")))
    return found


def front(manifests: Sequence[Manifest]) -> Manifest:
    """Return the workload whose pod runs the service: the StatefulSet, or the head of the Ray cluster."""
    if any(item["kind"] == "RayCluster" for item in manifests):
        return group(the(manifests, "RayCluster"), "headGroupSpec")
    return the(manifests, "StatefulSet")


def engines(manifests: Sequence[Manifest]) -> Manifest:
    """Return the workload whose pods each run an engine: the workers of the Ray cluster."""
    return group(the(manifests, "RayCluster"), "workerGroupSpecs")


def group(cluster: Manifest, name: str) -> Manifest:
    """Return a group of a Ray cluster's pods as a workload: its specification has their template."""
    specification = cluster["spec"][name]
    if isinstance(specification, list):
        (specification,) = specification
    return {**cluster, "spec": specification}


def pod(workload: Manifest) -> Manifest:
    """Return the pod's specification of a workload."""
    return workload["spec"]["template"]["spec"]


def container(workload: Manifest) -> Manifest:
    """Return the one container of a workload's pod."""
    (only,) = pod(workload)["containers"]
    return only


def relative(path: Path, start: str | Path) -> str:
    """Return the path from a directory, as a kustomization there names it."""
    return os.path.relpath(path, Path(start).resolve())


def named_ports(rule: Manifest) -> set[int]:
    """Return the ports that a rule of a network policy names, those within a range too."""
    return {port for each in rule["ports"] for port in range(each["port"], each.get("endPort", each["port"]) + 1)}


def num_bytes(quantity: str) -> int:
    """Return the bytes of a quantity such as 16Gi."""
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


def _left_out(overlay: str) -> list[str]:
    """Return the components that an overlay does not include itself."""
    own = yaml.safe_load((K8S / "overlays" / overlay / "kustomization.yaml").read_text()).get("components", [])
    unfit = OF_STATEFUL_SETS if overlay == "ray" else set[str]()
    return [name for name in COMPONENTS if f"../../components/{name}" not in own and name not in unfit]


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
