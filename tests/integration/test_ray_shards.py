"""One engine of two processes on a real Ray cluster of this machine: its numbers, weights in parts, the loss of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.listening import LOOPBACK, listening_hosts
from tests.support.ray_service import REPLACED_SECONDS, assert_right, engines, group, needs_ray, ray_service, weights_of
from tests.support.service_process import ServiceProcess
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client import VigorClient

pytestmark = [pytest.mark.slow, needs_ray]
NUM_SHARDS = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ray_service(tmp_path_factory.mktemp("service"), checkpoint, "--shard", str(NUM_SHARDS)) as running:
        yield running


def test_an_engine_of_two_processes_gives_the_norms_of_one(service: ServiceProcess, checkpoint: Path) -> None:
    with VigorClient(service.url) as client:
        for number in range(3):
            assert_right(client.score([group(number)]), checkpoint, number)
    assert len(engines(service)) == NUM_SHARDS


def test_what_the_processes_open_listens_on_this_machine_alone(service: ServiceProcess) -> None:
    assert set(listening_hosts(service.process.pid)) <= LOOPBACK


def test_published_weights_reach_both_parts(service: ServiceProcess, checkpoint: Path) -> None:
    with VigorClient(service.url) as client:
        client.publish_weights(weights_of(checkpoint, 1), weight_version=1)
        response = client.score([group(1)])
        assert response.weight_version == 1
        assert_right(response, checkpoint, 1)


def test_the_loss_of_one_process_replaces_the_engine_with_the_published_weights(
    service: ServiceProcess, checkpoint: Path
) -> None:
    before = {process.pid for process in engines(service)}
    os.kill(min(before), signal.SIGKILL)
    with VigorClient(service.url) as client:
        assert_right(client.score([group(2)]), checkpoint, 2)  # it waits for the engine
    wait_until(lambda: len(engines(service)) == NUM_SHARDS, deadline_seconds=REPLACED_SECONDS)
    assert before.isdisjoint(process.pid for process in engines(service))


def test_an_attribution_is_refused_with_the_reason(service: ServiceProcess) -> None:
    body = {"prompt_ids": [1, 2], "completion": [3, 4]}
    answer = service.http.post("/v1/attribution", json=body)
    assert answer.status_code == 422
    assert "attribution is not available" in answer.text
