"""The documented commands that start and resume a training run, by the real kubectl against a stand-in for the API."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.k8s.api_server import Answer, JobServer, job_server
from tests.k8s.rendering import ROOT, TRAINER_JOB, container, needs_kubectl

pytestmark = needs_kubectl
PAGE = (ROOT / "docs/operations/operating.md").read_text()
CREATE, RESUME = (
    command
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for command in block.replace("\\\n", "").splitlines()
    if "trainer-job/job.yaml" in command
)


@pytest.fixture
def server() -> Iterator[JobServer]:
    with job_server() as running:
        yield running


def run(command: str, server: JobServer, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the page. The stand-in has no schemas: fields are checked by tests/k8s/test_schemas.py."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server.url}}],
        "contexts": [{"name": "test", "context": {"cluster": "test"}}],
        "current-context": "test",
    }
    (directory / "kubeconfig").write_text(yaml.safe_dump(config))
    command = re.sub(r"\b(create|apply) --filename", r"\1 --validate=false --filename", command)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env={**os.environ, "KUBECONFIG": str(directory / "kubeconfig"), "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def variables(job: Answer) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container(job)["env"]}


def test_every_run_gets_a_name_of_its_own(server: JobServer, tmp_path: Path) -> None:
    for _ in range(2):
        done = run(CREATE, server, tmp_path)
        assert done.returncode == 0, done.stderr
    assert [job["metadata"]["name"] for job in server.jobs] == ["vigor-trainer-00000", "vigor-trainer-00001"]
    assert {job["metadata"]["namespace"] for job in server.jobs} == {"vigor"}


def test_a_run_is_resumed_in_its_own_directory(server: JobServer, tmp_path: Path) -> None:
    for command in (CREATE, RESUME):
        done = run(command, server, tmp_path)
        assert done.returncode == 0, done.stderr
    first, resumed = server.jobs
    assert variables(first)["RESUME"] == "false"
    assert variables(resumed) == {"RUN": "vigor-trainer-x7k2p", "RESUME": "true"}
    assert container(resumed)["args"] == container(first)["args"]


def test_apply_refuses_a_job_without_a_name(server: JobServer, tmp_path: Path) -> None:
    done = run(f"kubectl apply --filename {TRAINER_JOB / 'job.yaml'}", server, tmp_path)
    assert done.returncode != 0
    assert "cannot use generate name with apply" in done.stderr
    assert server.jobs == []


def test_kustomize_refuses_a_job_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text((TRAINER_JOB / "job.yaml").read_text())
    (tmp_path / "kustomization.yaml").write_text("resources: [job.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "missing metadata.name" in done.stderr
