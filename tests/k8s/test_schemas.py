"""Every overlay with every choice of components renders, and Kubernetes would know each field of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s.rendering import ROOT, Manifest, choices, front, group, needs_kubectl, render, the, trainer_job

pytestmark = needs_kubectl
SCHEMAS = ROOT.parent / "shared/schemas"
VERSIONS = ("1.30", "1.37")  # the first that knows lifecycle.preStop.sleep without being told to, and a new one


@pytest.mark.parametrize(("overlay", "components"), choices(), ids=str)
def test_every_choice_of_components_renders(overlay: str, components: tuple[str, ...]) -> None:
    manifests = render(overlay, components)
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(names) == len(set(names))
    assert front(manifests)["metadata"]["name"] == "vigor-service"
    assert {item["metadata"].get("namespace", "vigor") for item in manifests} == {"vigor"}


def everything() -> dict[str, Manifest]:
    """Return each manifest once, whatever number of choices it is in."""
    rendered = [*trainer_job(), *(item for overlay, components in choices() for item in render(overlay, components))]
    return {json.dumps(item, sort_keys=True): item for item in rendered}


def of_kubernetes(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_field_is_one_of_kubernetes(version: str) -> None:
    own = [item for item in everything().values() if of_kubernetes(item)]
    assert len(own) > 10
    for manifest in [*own, *pods_of_ray()]:
        kubernetes_validate.validate(manifest, version, strict=True)


def pods_of_ray() -> list[Manifest]:
    """Return the pods that KubeRay makes of the templates in the Ray cluster."""
    cluster = the(render("ray"), "RayCluster")
    templates = [group(cluster, name)["spec"]["template"] for name in ("headGroupSpec", "workerGroupSpecs")]
    return [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]


def test_a_field_that_kubernetes_does_not_know_is_seen() -> None:
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


needs_schemas = pytest.mark.skipif(
    not SCHEMAS.is_dir(), reason="the schemas of custom resources are not beside the checkout"
)


@needs_schemas
def test_every_field_of_a_custom_resource_is_one_of_its_definition() -> None:
    custom = [item for item in everything().values() if not of_kubernetes(item)]
    assert {"ScaledObject", "RayCluster"} <= {item["kind"] for item in custom}
    for manifest in custom:
        check_custom(manifest)


@needs_schemas
@pytest.mark.parametrize("place", [("spec",), ("spec", "headGroupSpec"), ("spec", "workerGroupSpecs", 0, "template")])
def test_a_field_that_a_ray_cluster_does_not_have_is_seen(place: tuple[str | int, ...]) -> None:
    cluster = copy.deepcopy(the(render("ray"), "RayCluster"))
    part: Any = cluster
    for name in place:
        part = part[name]
    part["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        check_custom(cluster)


def check_custom(manifest: Manifest) -> None:
    # The schemas themselves are not checked: some have a pattern as Go writes it.
    jsonschema.Draft202012Validator(json.loads(_schema(manifest).read_text())).validate(manifest)


def _schema(manifest: Manifest) -> Path:
    version = manifest["apiVersion"].rpartition("/")[2]
    return SCHEMAS / f"{manifest['kind'].lower()}_{version}.json"
