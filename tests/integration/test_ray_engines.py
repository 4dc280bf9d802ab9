"""Two engines as actors of a real Ray cluster on this machine: the numbers, the weights and the failures of one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.support.listening import LOOPBACK, listening_hosts
from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client import VigorClient
from vigor_client.schemas.scoring import ScoreResponse
from vigor_client.weight_format.writes import Copy
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import load_policy
from vigor_service.engine.sequences import TokenSequence

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'"),
]
NUM_ENGINES = 2
REPLACED_SECONDS = 120.0
TOLERANCE = 1e-5
CHANGED = "model.norm.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("service")
    flags = ["--model", str(checkpoint), "--engines", str(NUM_ENGINES), "--score-cache-entries", "0"]
    with service_process(directory, *flags, preloaded=False) as running:
        yield running
        assert running.stop() == 0, running.log.read_text()[-3000:]


def group(number: int) -> dict[str, object]:
    return {"prompt_ids": [number + 1, 2, 3], "completions": [[index + 3, number + 3, 7] for index in range(8)]}


def engines() -> list[psutil.Process]:
    """The processes of the engines."""
    return [process for process in psutil.process_iter() if is_engine(process)]


def is_engine(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] == ["ray::EngineActor"] or process.cmdline()[0].startswith("ray::EngineActor")
    except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
        return False


def weights_of(checkpoint: Path, version: int) -> dict[str, torch.Tensor]:
    """The model's weights in a version: its last norm is scaled."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {name: tensor * (1 + version / 8) if name == CHANGED else tensor for name, tensor in tensors.items()}


@cache
def norms(checkpoint: Path, version: int, number: int) -> list[float]:
    """What one engine in this process says of a group."""
    policy = load_policy(str(checkpoint), device="cpu")
    engine = Engine(policy.model, name="tiny")
    engine.load([(CHANGED, Copy(weights_of(checkpoint, version)[CHANGED]))])
    prompt, completions = group(number).values()
    sequences = [TokenSequence(tuple(prompt), tuple(ids)) for ids in completions]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    return [score.grad_norm for score in engine.score(sequences).scores]


def assert_right(response: ScoreResponse, checkpoint: Path, number: int) -> None:
    found = [score.grad_norm for score in response.groups[0].completions]
    assert found == pytest.approx(norms(checkpoint, response.weight_version, number), rel=TOLERANCE)


def test_two_engines_give_the_results_of_one(service: ServiceProcess, checkpoint: Path) -> None:
    with VigorClient(service.url) as client, ThreadPoolExecutor(4) as pool:
        for number, response in enumerate(pool.map(lambda number: client.score([group(number)]), range(12))):
            assert_right(response, checkpoint, number)
    assert len(engines()) == NUM_ENGINES


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


def test_engines_that_are_killed_under_load_lose_nothing(service: ServiceProcess, checkpoint: Path) -> None:
    with VigorClient(service.url) as client, ThreadPoolExecutor(5) as pool:
        scoring = [pool.submit(client.score, [group(number % 6)]) for number in range(60)]
        engines()[0].send_signal(signal.SIGKILL)
        for number, future in enumerate(scoring):
            assert_right(future.result(), checkpoint, number % 6)
        wait_until(lambda: len(engines()) == NUM_ENGINES, deadline_seconds=REPLACED_SECONDS)


def test_without_an_engine_the_service_is_not_ready_and_comes_back_with_its_weights(
    service: ServiceProcess, checkpoint: Path
) -> None:
    for process in engines():
        os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: service.http.get("/readyz").status_code == 503)
    assert service.http.get("/readyz").json()["reason"] == "no_engine"
    assert service.http.get("/healthz").status_code == 200
    with VigorClient(service.url) as client:
        assert_right(client.score([group(3)]), checkpoint, 3)  # it waits for the engine
        wait_until(lambda: service.http.get("/readyz").status_code == 200, deadline_seconds=REPLACED_SECONDS)
