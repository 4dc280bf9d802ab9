"""The example of a training run parses, and fits the service of the overlay gpu."""

from __future__ import annotations

from pathlib import PurePosixPath

import httpx
import pytest

from tests.k8s.rendering import Manifest, container, needs_kubectl, pod, render, the, trainer_job
from tests.k8s.settings import environment
from vigor_trainer.config.parsing import Arguments, parse_arguments

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
    assert container(job)["command"] == ["vigor-trainer"]
    return parse_arguments([*container(job)["args"], *ON_A_CPU])


def test_it_is_rewarded_by_the_service(arguments: Arguments, job: Manifest) -> None:
    url = httpx.URL(arguments.vigor.reward_url)
    service = the(render("gpu"), "Service", url.host)
    assert service["metadata"]["namespace"] == job["metadata"]["namespace"]
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


def test_it_may_do_no_more_than_the_service(job: Manifest) -> None:
    service = the(render("gpu"), "StatefulSet")
    assert pod(job)["securityContext"] == pod(service)["securityContext"]
    assert container(job)["securityContext"] == container(service)["securityContext"]
    assert pod(job)["automountServiceAccountToken"] is False
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod(job)["volumes"] if "emptyDir" in volume)
