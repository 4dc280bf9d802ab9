"""The example overlay as somebody copies and edits it: another namespace, other names, and a choice of components."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.rendering import K8S, Manifest, relative, render_directory

NAMESPACE = "rl-team"
NAMES = {"monitoring": "observability", "runbooks": "https://wiki.example.com/on-call/vigor"}


def render_example(directory: Path, optional: Sequence[str], **changes: Any) -> list[Manifest]:  # noqa: ANN401 - YAML
    """Return the manifests of a copy of the example with ``NAMESPACE``, ``NAMES`` and these ``optional`` components.

    ``changes`` replace entries of its kustomization.
    """
    shutil.copytree(K8S, directory / "k8s")
    overlay = directory / "k8s/overlays/example"
    _edit(overlay / "names.yaml", lambda names: {**names, "data": NAMES})
    added = [relative(directory / "k8s/components" / name, overlay) for name in optional]
    _edit(
        overlay / "kustomization.yaml",
        lambda own: {**own, "namespace": NAMESPACE, "components": [*own["components"], *added], **changes},
    )
    return render_directory(overlay)


def _edit(file: Path, edited: Any) -> None:  # noqa: ANN401 - a function of YAML
    file.write_text(yaml.safe_dump(edited(yaml.safe_load(file.read_text()))))
