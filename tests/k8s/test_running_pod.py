"""The real service with a pod's settings: its probes answer, its keys count, its weights outlive it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file

from tests.k8s.rendering import container, needs_kubectl, render, the
from tests.k8s.settings import KEYS, flags
from tests.support.live_service import live_service
from tests.support.pushing import push
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until

pytestmark = needs_kubectl
PLACED_BY_THE_TEST = ("--host", "--port", "--state-dir", "--model")


def probe_paths() -> dict[str, str]:
    only = container(the(render("cpu-dev"), "StatefulSet"))
    return {name: only[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}


def authorized(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def weight_version(http: httpx.Client) -> int:
    answer = http.get("/v1/weights", headers=authorized("VIGOR_SCORE_KEY_FILE"))
    assert answer.status_code == 200, answer.text
    return answer.json()["weight_version"]


def arguments(directory: Path) -> list[str]:
    """Return what the pod tells the service, with a tiny model and this directory for what it mounts."""
    checkpoint = save_tiny_checkpoint(directory / "checkpoint")
    given = flags(render("cpu-dev"), directory)
    kept = [flag for flag in given if flag.partition("=")[0] not in PLACED_BY_THE_TEST]
    return [*kept, "--model", str(checkpoint), "--state-dir", str(directory / "state")]


def test_a_pods_probes_answer_without_a_key_and_all_else_wants_one(tmp_path: Path) -> None:
    with service_process(tmp_path, *arguments(tmp_path)) as service:
        statuses = {name: service.http.get(path).status_code for name, path in probe_paths().items()}
        assert statuses == {"startup": 200, "readiness": 200, "liveness": 200}
        assert service.http.get("/v1/weights").status_code == 401
        assert weight_version(service.http) == 0


@pytest.mark.slow
def test_a_pod_that_is_replaced_comes_back_with_its_weights(tmp_path: Path) -> None:
    told = arguments(tmp_path)
    tensors = {name: tensor + 0.5 for name, tensor in load_file(tmp_path / "checkpoint/model.safetensors").items()}
    with service_process(tmp_path, *told) as service:
        service.http.headers.update(authorized("VIGOR_PUBLISH_KEY_FILE"))
        assert push(service.http, tensors, version=7).status_code == 200
        assert service.stop() == 0
    with service_process(tmp_path, *told) as service:
        assert weight_version(service.http) == 7


def test_a_pod_with_damaged_weights_is_kept_for_the_update_that_puts_it_right(tmp_path: Path) -> None:
    paths = probe_paths()
    (tmp_path / "00000001").mkdir()
    with live_service(None, state_dir=tmp_path, wait_ready=False) as service:
        wait_until(lambda: service.http.get(paths["readiness"]).json().get("reason") == "weights_poisoned")
        assert {name: service.http.get(path).status_code for name, path in paths.items()} == {
            "startup": 200,
            "readiness": 503,
            "liveness": 200,
        }
