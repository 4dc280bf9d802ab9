"""compose.yaml and compose.gpu.yaml are valid and confined, and fit the image, the settings and the trainer."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.image.dockerfile import DOCKERFILE, read_stages
from tests.k8s.rendering import ROOT
from tests.k8s.test_operating import COMMANDS, options
from tests.support.live_service import live_service
from vigor_client.cli.main import main
from vigor_service.settings import Settings
from vigor_trainer.config.parsing import parse_arguments

FILES = [ROOT / "deploy/compose.yaml", ROOT / "deploy/compose.gpu.yaml"]
BUILD, FINAL = read_stages(DOCKERFILE.read_text())
COMPOSE, GPU = (yaml.safe_load(file.read_text()) for file in FILES)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
needs_compose_spec = pytest.mark.skipif(
    find_spec("compose_spec") is None, reason="compose-spec is not installed: make setup"
)


def parse(text: str) -> None:
    """Raise ValueError unless the text is of the Compose specification, which knows each of its fields."""
    from compose_spec import PyCompose  # of a test that is skipped where it is not installed

    PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))  # without anchors, which it does not know


def interpolated(text: str, **variables: str) -> str:
    """Return the text with `${NAME:-default}` as Compose puts it in."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], text)


@needs_compose_spec
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_specification_knows_every_field(file: Path) -> None:
    parse(file.read_text())


@needs_compose_spec
@pytest.mark.parametrize(
    ("field", "misspelled"),
    [("read_only: true", "readonly: true"), ("start_period", "start_periods"), ("service_healthy", "service_healty")],
)
def test_a_field_that_the_specification_does_not_know_is_seen(field: str, misspelled: str) -> None:
    text = FILES[0].read_text()
    assert field in text
    with pytest.raises(ValueError, match=misspelled.partition(":")[0]):
        parse(text.replace(field, misspelled))


def image_arguments(command: list[str]) -> dict[str, str]:
    return {**defaults(), **dict(option.split("=", 1) for option in options(command, "--build-arg"))}


def defaults() -> dict[str, str]:
    return {name: value for stage in (BUILD, FINAL) for it in stage.all("ARG") for name, value in it.pairs().items()}


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_compose_builds_the_images_of_the_page(name: str, on_gpu: bool) -> None:
    layers = [SERVICES[name], *([GPU["services"][name]] if on_gpu else [])]
    (build,) = (command for command in COMMANDS if options(command, "--tag") == [layers[-1]["image"]])
    given = {key: value for layer in layers for key, value in layer["build"]["args"].items()}
    assert {**defaults(), **given} == image_arguments(build)
    assert (FILES[0].parent / layers[0]["build"]["context"] / "Dockerfile").resolve() == DOCKERFILE.resolve()


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_writes_only_to_its_volumes_and_gains_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    mounts = dict(volume.split(":") for volume in service["volumes"])
    assert mounts.keys() <= COMPOSE["volumes"].keys()
    home = {name: value for it in FINAL.all("ENV") for name, value in it.pairs().items()}["HOME"]
    assert {"/var/lib/vigor", home} == set(mounts.values())
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - of the container


def test_the_service_is_told_what_it_understands() -> None:
    given = {**SERVICES["service"]["environment"], **GPU["services"]["service"]["environment"]}
    assert all(name.removeprefix("VIGOR_").lower() in Settings.model_fields for name in given)
    assert PurePosixPath("/var/lib/vigor") in PurePosixPath(given["VIGOR_STATE_DIR"]).parents


def test_keys_are_files_that_git_ignores() -> None:
    for service in SERVICES.values():
        assert set(service["secrets"]) <= COMPOSE["secrets"].keys()
    given = SERVICES["service"]["environment"]
    for name in ("score", "publish"):
        assert given[f"VIGOR_{name.upper()}_KEY_FILE"] == f"/run/secrets/{name}"
        assert COMPOSE["secrets"][name] == {"file": f"keys/{name}"}
    assert SERVICES["trainer"]["secrets"] == ["publish"]


def test_only_this_machine_reaches_the_service() -> None:
    assert SERVICES["service"]["ports"] == [f"127.0.0.1:8000:{FINAL.all('EXPOSE')[0].rest}"]
    assert "ports" not in SERVICES["trainer"]


def test_it_is_given_the_time_to_drain() -> None:
    seconds = int(SERVICES["service"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= int(SERVICES["service"]["environment"]["VIGOR_DRAIN_SECONDS"]) + 15


def test_it_is_healthy_when_it_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form, program, *arguments = SERVICES["service"]["healthcheck"]["test"]
    assert (form, program) == ("CMD", "vigor")
    with live_service(tmp_path) as service:
        assert main([*arguments, "--url", str(service.http.base_url)]) == 0
    assert main([*arguments[:-1], "0.1", "--url", str(service.http.base_url)]) != 0
    assert capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("resume", ["", "true"])
def test_a_training_run_parses_and_meets_the_service(resume: str) -> None:
    trainer = SERVICES["trainer"]
    assert trainer["entrypoint"] == ["vigor-trainer"]
    command = [interpolated(argument, RESUME=resume) for argument in trainer["command"]]
    arguments = parse_arguments([*command, "--use_cpu", "--bf16=false"])
    assert arguments.vigor.reward_url == f"http://service:{FINAL.all('EXPOSE')[0].rest}"
    assert arguments.vigor.api_key_file == "/run/secrets/publish"
    assert not arguments.vigor.model  # the embedded one, as the service
    assert PurePosixPath("/var/lib/vigor") in PurePosixPath(str(arguments.grpo.output_dir)).parents
    assert arguments.grpo.resume_from_checkpoint == (resume or "false")


def test_service_and_training_run_have_one_model() -> None:
    (model,) = (part for part in SERVICES["trainer"]["command"] if part.startswith("--model="))
    assert model.removeprefix("--model=") == SERVICES["service"]["environment"]["VIGOR_MODEL"] == "${VIGOR_MODEL:-}"


def test_on_gpus_each_has_one_of_its_own() -> None:
    assert GPU["services"].keys() == SERVICES.keys()
    taken = [
        device["device_ids"]
        for service in GPU["services"].values()
        for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert taken == [["0"], ["1"]]
    assert GPU["services"]["service"]["environment"]["VIGOR_DEVICE"] == "cuda"


def test_the_page_starts_services_that_there_are_with_variables_that_are_read() -> None:
    commands = [" ".join(command) for command in COMMANDS if "compose" in command]
    assert [command for command in commands if " up " in command and "--wait" in command]
    for command in commands:
        assert set(re.findall(r"--file (\S+)", command)) <= {"deploy/compose.yaml"}
        assert set(re.findall(r" run .*?(\w+)$", command)) <= SERVICES.keys()
    (exported,) = (command for command in COMMANDS if command[0] == "export")
    given = dict(part.split("=", 1) for part in exported[1:])
    assert given.pop("COMPOSE_FILE").split(":") == [str(file.relative_to(ROOT)) for file in FILES]
    names = given.keys() | {name for command in commands for name in re.findall(r"\b([A-Z]+)=", command)}
    assert names == set(re.findall(r"\$\{(\w+)", FILES[0].read_text()))
