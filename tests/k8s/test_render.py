"""`make render` writes one file that `kubectl apply --filename` takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.k8s.rendering import K8S, RENDER_SECONDS, ROOT, Manifest, needs_kubectl, render, render_directory
from tests.k8s.test_schemas import VERSIONS, check_custom, needs_schemas, of_kubernetes

pytestmark = needs_kubectl


def make_render(file: Path, *variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "render", f"INSTALL={file}", *variables]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RENDER_SECONDS, check=False)


def rendered(file: Path, *variables: str) -> list[Manifest]:
    done = make_render(file, *variables)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(file.read_text()))


def test_it_is_the_overlay_gpu_by_default(tmp_path: Path) -> None:
    manifests = rendered(tmp_path / "install.yaml")
    assert manifests == render("gpu")
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@needs_schemas
def test_another_overlay_is_rendered_by_its_directory(tmp_path: Path) -> None:
    manifests = rendered(tmp_path / "install.yaml", "OVERLAY=k8s/overlays/ray")
    assert manifests == render_directory(K8S / "overlays/ray")
    for manifest in manifests:
        if of_kubernetes(manifest):
            kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)
        else:
            check_custom(manifest)


def test_an_overlay_that_is_not_there_leaves_no_file(tmp_path: Path) -> None:
    done = make_render(tmp_path / "install.yaml", "OVERLAY=k8s/overlays/nowhere")
    assert done.returncode != 0
    assert "k8s/overlays/nowhere" in done.stderr
    assert not (tmp_path / "install.yaml").exists()


@pytest.mark.parametrize("name", ["install.yaml", "deploy/keys/score"])
def test_git_does_not_take_what_it_writes_nor_keys(name: str) -> None:
    asked = subprocess.run(["git", "check-ignore", name], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert asked.returncode == 0
