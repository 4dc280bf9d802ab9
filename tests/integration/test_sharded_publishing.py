"""However Accelerate spreads a model over processes, the service ends with the weights of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.support.cutting_proxy import cutting_proxy
from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.ranks import said_by_two
from tests.trainer.sharded_publishing import STEP, step
from vigor_client import VigorClient, digest_of_tensors

PROGRAM = "tests.trainer.sharded_publishing"
KINDS = ["ddp", "fsdp2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[ServiceProcess]:
    with service_process(tmp_path_factory.mktemp("service"), "--model", str(checkpoint)) as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_publish_the_digest_of_one(service: ServiceProcess, checkpoint: Path, kind: str) -> None:
    with VigorClient(str(service.http.base_url)) as client:
        digest = digest_of_tensors(step(Accelerator(cpu=True), str(checkpoint)).state_dict(), client.tensors())
        told = said_by_two(PROGRAM, str(checkpoint), kind, str(service.http.base_url))
        assert told == [f"process 0: {digest}", f"process 1: {digest}"]
        served = client.weights()
        assert served.weight_digest == digest
        assert served.weight_version == STEP or kind != KINDS[0]  # the second finds the weights served already


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_is_lost_in_the_middle_ends_both_processes(
    service: ServiceProcess, checkpoint: Path, kind: str
) -> None:
    url = service.http.base_url
    assert url.port is not None
    with VigorClient(str(url)) as client:
        served = {name: torch.zeros(info.shape) for info in client.tensors().tensors for name in [info.name]}
        client.publish_weights(served, weight_version=99)  # so that there is something to send
    with cutting_proxy((url.host, url.port), 20_000) as cut:
        told = said_by_two(PROGRAM, str(checkpoint), kind, cut)
    assert told == ["process 0: ConnectionLostError", "process 1: MainProcessError"]
