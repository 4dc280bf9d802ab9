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
            "resources": [_relative(K8S / "overlays" / overlay, name)],
            "components": [_relative(K8S / "components" / component, name) for component in components],
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


@cache
def trainer_job() -> list[Manifest]:
    """Return the manifests of the example of a training run."""
    return render_directory(K8S / "examples/trainer-job")


def the(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the one manifest of this kind, and name if several are of it."""
    (found,) = (item for item in manifests if item["kind"] == kind and name in (None, item["metadata"]["name"]))
    return found


def pod(workload: Manifest) -> Manifest:
    """Return the pod's specification of a StatefulSet or a Job."""
    return workload["spec"]["template"]["spec"]


def container(workload: Manifest) -> Manifest:
    """Return the one container of a StatefulSet's or a Job's pod."""
    (only,) = pod(workload)["containers"]
    return only


def _left_out(overlay: str) -> list[str]:
    """Return the components that an overlay does not include itself."""
    own = (K8S / "overlays" / overlay / "kustomization.yaml").read_text()
    return [name for name in COMPONENTS if f"components/{name}" not in own]


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


def _relative(path: Path, start: str) -> str:
    return os.path.relpath(path, Path(start).resolve())
