"""What the image says about itself is what the service, the project and the manifests say."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.image.dockerfile import DOCKERFILE, ROOT, Stage, read_stages
from tests.k8s.rendering import container, needs_kubectl, pod, render, the, trainer_job
from tests.support.live_service import live_service
from vigor_service.runtime import LoadedModel
from vigor_service.settings import Settings

BUILD, FINAL = read_stages(DOCKERFILE.read_text())


def variables(stage: Stage) -> dict[str, str]:
    return {name: value for it in stage.all("ENV") for name, value in it.pairs().items()}


def test_both_stages_have_the_same_python() -> None:
    assert BUILD.base == FINAL.base  # the environment that is copied links to it


def test_an_instruction_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="the instruction ONBUILD is not known here"):
        read_stages("FROM x\nONBUILD RUN y\n")


def test_the_entrypoint_is_a_command_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (command,) = FINAL.command("ENTRYPOINT")
    assert command in project["scripts"]
    extras = BUILD.all("ARG")[-1].pairs()["EXTRAS"].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()


def test_its_variables_are_settings_and_it_listens_where_it_says() -> None:
    given = {name: value for name, value in variables(FINAL).items() if name.startswith("VIGOR_")}
    values = {name.removeprefix("VIGOR_").lower(): value for name, value in given.items()}
    settings = Settings(allow_anonymous=True, **values)  # pyright: ignore[reportArgumentType] - text, as it comes
    assert FINAL.all("EXPOSE")[0].rest == str(settings.port)


def test_it_leaves_the_heap_to_the_service() -> None:
    assert not [name for name in variables(FINAL) if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))]


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    copied = [it.rest.split() for it in BUILD.all("COPY")]
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for *sources, _ in copied for source in sources} == seen
    assert all((ROOT / name).exists() for name in seen)


@needs_kubectl
def test_pods_run_as_its_user_and_mount_its_home() -> None:
    for workload in (the(render("gpu"), "StatefulSet"), the(trainer_job(), "Job")):
        context = pod(workload)["securityContext"]
        assert FINAL.all("USER")[0].rest == f"{context['runAsUser']}:{context['runAsGroup']}"
        assert variables(FINAL)["HOME"] in [mount["mountPath"] for mount in container(workload)["volumeMounts"]]


def is_healthy(url_port: int | None) -> bool:
    program, *arguments = FINAL.command("HEALTHCHECK")
    assert program == "python"
    environment = {**os.environ, "VIGOR_PORT": str(url_port)}
    done = subprocess.run([sys.executable, *arguments], env=environment, timeout=30, capture_output=True, check=False)
    return done.returncode == 0


def test_docker_sees_a_service_that_is_alive(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        assert is_healthy(service.http.base_url.port)
    assert not is_healthy(service.http.base_url.port)


def test_docker_sees_a_service_that_has_to_be_restarted(tmp_path: Path) -> None:
    def load_model() -> LoadedModel:
        raise RuntimeError("no model")

    with live_service(tmp_path, load_model=load_model, wait_ready=False) as service:
        assert not is_healthy(service.http.base_url.port)
