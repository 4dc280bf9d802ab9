"""Two engines as actors of a real Ray cluster on this machine: the numbers, the weights and the failures of one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from tests.support.listening import LOOPBACK, listening_hosts
from tests.support.ray_service import (
    COMPLETIONS_PER_GROUP,
    REPLACED_SECONDS,
    assert_right,
    engines,
    group,
    needs_ray,
    ray_service,
    weights_of,
)
from tests.support.service_process import ServiceProcess
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client import VigorClient

pytestmark = needs_ray
NUM_ENGINES = 2
NUM_KILLS = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ray_service(tmp_path_factory.mktemp("service"), checkpoint, "--engines", str(NUM_ENGINES)) as running:
        yield running


def test_two_engines_give_the_results_of_one(service: ServiceProcess, checkpoint: Path) -> None:
    with VigorClient(service.url) as client, ThreadPoolExecutor(4) as pool:
        for number, response in enumerate(pool.map(lambda number: client.score([group(number)]), range(12))):
            assert_right(response, checkpoint, number)
    assert len(engines(service)) == NUM_ENGINES


def test_what_ray_opens_listens_on_this_machine_alone(service: ServiceProcess) -> None:
    hosts = listening_hosts(service.process.pid)
    assert len(hosts) > 4, "those of Ray too"
    assert set(hosts) <= LOOPBACK


def test_weights_that_are_pushed_under_load_are_never_mixed(service: ServiceProcess, checkpoint: Path) -> None:
    with VigorClient(service.url) as client, ThreadPoolExecutor(5) as pool:
        scoring = [pool.submit(client.score, [group(number % 6)]) for number in range(60)]
        for version in range(1, 5):
            client.publish_weights(weights_of(checkpoint, version), weight_version=version)
        responses = [future.result() for future in scoring]
        assert client.score([group(0)]).weight_version == 4
    for number, response in enumerate(responses):
        assert_right(response, checkpoint, number % 6)


@pytest.mark.slow  # engines start again and again
def test_engines_that_are_killed_under_load_lose_nothing(service: ServiceProcess, checkpoint: Path) -> None:
    """Kill one at a random moment, again and again, while callers wait for their scores."""
    moments = random.Random(7)
    ended = Event()

    def call(caller: int) -> int:
        num_answers = 0
        with VigorClient(service.url, max_retries=0) as client:
            while not ended.is_set():
                number = (num_answers + caller) % 6
                assert_right(client.score([group(number)]), checkpoint, number)
                num_answers += 1
        return num_answers

    before = _num_ranked(service)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, caller) for caller in range(4)]
        try:
            for _ in range(NUM_KILLS):
                assert not ended.wait(moments.uniform(0, 2))
                moments.choice(engines(service)).send_signal(signal.SIGKILL)
                wait_until(lambda: len(engines(service)) == NUM_ENGINES, deadline_seconds=REPLACED_SECONDS)
        finally:
            ended.set()
        num_answers = sum(future.result() for future in calls)
    assert num_answers >= NUM_KILLS
    assert _num_ranked(service) - before == COMPLETIONS_PER_GROUP * num_answers, "each is answered once"


def _num_ranked(service: ServiceProcess) -> float:
    return sum(value for series, value in service.metrics().items() if series.startswith("vigor_completions_total"))


@pytest.mark.slow
def test_without_an_engine_the_service_is_not_ready_and_comes_back_with_its_weights(
    service: ServiceProcess, checkpoint: Path
) -> None:
    for process in engines(service):
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: service.http.get("/readyz").status_code == 503)
    assert service.http.get("/readyz").json()["reason"] == "no_engine"
    assert service.http.get("/healthz").status_code == 200
    with VigorClient(service.url) as client:
        assert_right(client.score([group(3)]), checkpoint, 3)  # it waits for the engine
        wait_until(lambda: service.http.get("/readyz").status_code == 200, deadline_seconds=REPLACED_SECONDS)
