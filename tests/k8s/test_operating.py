"""The page on operating says what the Dockerfile, the manifests and the service say."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tests.image.dockerfile import DOCKERFILE, read_stages
from tests.k8s.rendering import (
    K8S,
    OVERLAYS,
    ROOT,
    container,
    engines,
    front,
    needs_kubectl,
    pod,
    render,
    render_directory,
    the,
    trainer_job,
)
from tests.k8s.settings import environment
from vigor_client.cli.main import main
from vigor_service.settings import Settings

PAGE = (ROOT / "docs/operations/operating.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the page's fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
COMMANDS = [shlex.split(line) for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]


def options(command: list[str], name: str) -> list[str]:
    return [value for flag, value in pairwise(command) if flag == name]


def test_what_is_built_is_what_the_manifests_run() -> None:
    builds = [command for command in COMMANDS if command[:2] == ["docker", "build"]]
    arguments = {
        name for stage in read_stages(DOCKERFILE.read_text()) for it in stage.all("ARG") for name in it.pairs()
    }
    assert {option.partition("=")[0] for build in builds for option in options(build, "--build-arg")} == arguments
    built = {tag for build in builds for tag in options(build, "--tag")}
    assert built == {
        "vigor-service:0.1.0-cpu",
        "vigor-service:0.1.0-cuda",
        "vigor-service:0.1.0-ray",
        "vigor-trainer:0.1.0-cpu",
        "vigor-trainer:0.1.0-cuda",
    }


@needs_kubectl
def test_the_images_of_the_manifests_are_built() -> None:
    workloads = [front(render(overlay)) for overlay in OVERLAYS] + [the(trainer_job(), "Job")]
    names = [container(workload)["image"].removeprefix("registry.example.com/") for workload in workloads]
    assert all(f"--tag {name} " in PAGE for name in names)


@needs_kubectl
def test_the_image_with_ray_is_built_with_its_extra() -> None:
    image = container(front(render("ray")))["image"]
    (build,) = (command for command in COMMANDS if options(command, "--tag") == [image])
    extras = dict(option.split("=", 1) for option in options(build, "--build-arg"))["EXTRAS"].split(",")
    assert {"service", "ray"} <= set(extras) <= EXTRAS


def test_the_container_is_started_with_settings() -> None:
    (start,) = (command for command in COMMANDS if command[:2] == ["docker", "run"])
    names = {option.partition("=")[0] for option in options(start, "--env")}
    assert names <= {f"VIGOR_{name.upper()}" for name in Settings.model_fields}
    assert float(options(start, "--stop-timeout")[0]) > Settings.model_fields["drain_seconds"].default


@needs_kubectl
@pytest.mark.parametrize("overlay", ["gpu", "ray"])
def test_the_overlay_of_ones_own_renders(tmp_path: Path, overlay: str) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (example,) = blocks("yaml")
    own = tmp_path / "k8s/overlays/own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(example.replace("../gpu", f"../{overlay}"))
    manifests = render_directory(own)
    workloads = [front(manifests), *([engines(manifests)] if overlay == "ray" else [])]
    assert all(container(workload)["image"].startswith("registry.example.com/vigor-service:") for workload in workloads)
    assert environment(manifests)["VIGOR_MODEL"] == "Qwen/Qwen2.5-3B-Instruct"


@needs_kubectl
def test_the_secret_that_is_made_is_the_one_that_pods_mount() -> None:
    (create,) = (command for command in COMMANDS if "secret" in command)
    manifests = render("gpu")
    (mounted,) = (volume["secret"] for volume in pod(the(manifests, "StatefulSet"))["volumes"] if "secret" in volume)
    assert create[create.index("generic") + 1] == mounted["secretName"]
    keys = {part.removeprefix("--from-literal=").partition("=")[0] for part in create if part.startswith("--from-")}
    data = environment(manifests)
    assert keys == {Path(data[f"VIGOR_{name}_KEY_FILE"]).name for name in ("SCORE", "PUBLISH")}


@needs_kubectl
def test_each_pod_is_published_to_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    (push,) = (command for command in COMMANDS if command[:2] == ["vigor", "push"])
    workload = the(render("gpu"), "StatefulSet")
    (port,) = container(workload)["ports"]
    name = f"{workload['metadata']['name']}-$pod.{workload['spec']['serviceName']}"
    assert options(push, "--url") == [f"http://{name}:{port['containerPort']}"]
    with pytest.raises(SystemExit):
        main(["push", "--help"])
    assert {part for part in push if part.startswith("--")} <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_every_part_that_is_named_is_there_and_every_overlay_is_named() -> None:
    named = set(re.findall(r"^\| `(k8s/[\w/-]+)` \|", PAGE, re.MULTILINE))
    assert all((ROOT / name).is_dir() for name in named)
    offered = [path for kind in ("overlays", "components", "examples") for path in (K8S / kind).iterdir()]
    assert {str(path.relative_to(ROOT)) for path in offered} <= named


@needs_kubectl
@pytest.mark.parametrize(
    ("probe", "limit"), [("startup", "10 minutes"), ("readiness", "15 seconds"), ("liveness", "a minute")]
)
def test_the_table_of_probes_is_that_of_the_pod(probe: str, limit: str) -> None:
    described = container(the(render("gpu"), "StatefulSet"))[f"{probe}Probe"]
    seconds = described["periodSeconds"] * described["failureThreshold"]
    assert seconds == {"10 minutes": 600, "15 seconds": 15, "a minute": 60}[limit]
    row = rf"\| {probe} \| `GET {described['httpGet']['path']}` \| .* \| after {limit} "
    assert re.search(row, PAGE)
