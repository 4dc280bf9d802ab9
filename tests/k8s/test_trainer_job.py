"""The example of a training run parses, and fits the service of the overlay gpu."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import httpx
import pytest
from transformers.trainer import TRAINER_STATE_NAME

from tests.k8s.rendering import Manifest, container, needs_kubectl, pod, render, the, trainer_job
from tests.k8s.settings import environment
from vigor_trainer.config.parsing import Arguments, parse_arguments
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.resume import find_checkpoint

pytestmark = [
    needs_kubectl,
    # As in the trainer's own main: TRL says it in every run.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
ON_A_CPU = ("--use_cpu", "--bf16=false")  # where the test runs


@pytest.fixture
def job() -> Manifest:
    return the(trainer_job(), "Job")


@pytest.fixture
def arguments(job: Manifest) -> Arguments:
    return parsed(job, RUN="vigor-trainer-x7k2p", RESUME="false")


def parsed(job: Manifest, **environment: str) -> Arguments:
    """Return what the trainer reads from the arguments, with variables put in as Kubernetes does."""
    assert container(job)["command"] == ["vigor-trainer"]
    given = container(job)["args"]
    for name, value in environment.items():
        assert name in {variable["name"] for variable in container(job)["env"]}
        given = [argument.replace(f"$({name})", value) for argument in given]
    assert not [argument for argument in given if "$(" in argument]
    return parse_arguments([*given, *ON_A_CPU])


def test_it_is_rewarded_by_the_service(arguments: Arguments) -> None:
    url = httpx.URL(arguments.vigor.reward_url)
    service = the(render("gpu"), "Service", url.host)
    claim = the(trainer_job(), "PersistentVolumeClaim")
    assert service["metadata"]["namespace"] == claim["metadata"]["namespace"]
    assert [port["port"] for port in service["spec"]["ports"]] == [url.port]


def test_it_trains_the_model_that_the_service_has(arguments: Arguments) -> None:
    assert arguments.vigor.model == environment(render("gpu"))["VIGOR_MODEL"]


def test_it_sees_the_publish_key_and_no_other(arguments: Arguments, job: Manifest) -> None:
    (keys,) = (volume for volume in pod(job)["volumes"] if "secret" in volume)
    (mount,) = (mount for mount in container(job)["volumeMounts"] if mount["name"] == keys["name"])
    (item,) = keys["secret"]["items"]
    assert arguments.vigor.api_key_file == str(PurePosixPath(mount["mountPath"]) / item["path"])
    service = pod(the(render("gpu"), "StatefulSet"))
    assert keys["secret"]["secretName"] in [
        volume["secret"]["secretName"] for volume in service["volumes"] if "secret" in volume
    ]
    assert item["key"] == PurePosixPath(environment(render("gpu"))["VIGOR_PUBLISH_KEY_FILE"]).name


def test_what_it_writes_outlives_it(arguments: Arguments, job: Manifest) -> None:
    claim = the(trainer_job(), "PersistentVolumeClaim")["metadata"]["name"]
    (volume,) = (volume for volume in pod(job)["volumes"] if "persistentVolumeClaim" in volume)
    (mount,) = (mount for mount in container(job)["volumeMounts"] if mount["name"] == volume["name"])
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    assert PurePosixPath(mount["mountPath"]) in PurePosixPath(str(arguments.grpo.output_dir)).parents


def test_each_run_has_a_directory_of_its_own(job: Manifest) -> None:
    (run,) = (variable for variable in container(job)["env"] if variable["name"] == "RUN")
    assert run["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['batch.kubernetes.io/job-name']"
    first, second = (parsed(job, RUN=name, RESUME="false").grpo.output_dir for name in ("a", "b"))
    assert first != second


def test_a_new_run_begins_at_step_0_and_a_resumed_one_at_its_last_checkpoint(job: Manifest, tmp_path: Path) -> None:
    for step in (50, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / TRAINER_STATE_NAME).write_text(json.dumps({"global_step": step}))
    new, resumed = (parsed(job, RUN="a", RESUME=value).grpo.resume_from_checkpoint for value in ("false", "true"))
    assert find_checkpoint(new, tmp_path) is None
    checkpoint = find_checkpoint(resumed, tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 100


def test_a_run_that_is_not_there_is_not_resumed(job: Manifest, tmp_path: Path) -> None:
    resumed = parsed(job, RUN="misspelled", RESUME="true").grpo.resume_from_checkpoint
    with pytest.raises(UnsupportedSettingError, match="there is no complete checkpoint"):
        find_checkpoint(resumed, tmp_path)


def test_one_pod_at_a_time_writes_to_the_volume() -> None:
    assert the(trainer_job(), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_it_may_do_no_more_than_the_service(job: Manifest) -> None:
    service = the(render("gpu"), "StatefulSet")
    assert pod(job)["securityContext"] == pod(service)["securityContext"]
    assert container(job)["securityContext"] == container(service)["securityContext"]
    assert pod(job)["automountServiceAccountToken"] is False
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod(job)["volumes"] if "emptyDir" in volume)
