"""The real service with its model on a CUDA device: scores, a full update and a delta, in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint
from vigor_client import VigorClient, WeightSnapshot, digest_of_tensors
from vigor_service.engine.loading.loading import load_policy
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import TokenSequence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SEQUENCES = [TokenSequence((1, 2, 3), completion) for completion in ((4, 5, 6, 7), (8,), (9, 10, 11) * 20)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    """The policy as its trainer has it."""
    return load_policy(str(checkpoint), device="cuda", dtype="bfloat16").model


@pytest.fixture(scope="module")
def service(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    arguments = ("--model", str(checkpoint), "--device", "cuda", "--dtype", "bfloat16")
    with service_process(tmp_path_factory.mktemp("service"), *arguments) as running:
        yield running


def check_scores(service: ServiceProcess, model: PreTrainedModel) -> None:
    """Make sure that the service's norms are the reference's under the trainer's weights."""
    group = {"prompt_ids": [1, 2, 3], "completions": [list(sequence.completion_ids) for sequence in SEQUENCES]}
    answer = service.http.post("/v1/score", json={"groups": [group]})
    assert answer.status_code == 200, answer.text
    norms = [completion["grad_norm"] for completion in answer.json()["groups"][0]["completions"]]
    expected = [exact_score(model, sequence, measured_parameters(model)).grad_norm for sequence in SEQUENCES]
    assert norms == pytest.approx(expected, rel=2e-2)


def test_scores_follow_a_full_update_and_a_delta(service: ServiceProcess, model: PreTrainedModel) -> None:
    assert service.http.get("/v1/model").json()["device"].startswith("cuda")
    check_scores(service, model)
    snapshot = WeightSnapshot()
    with VigorClient(str(service.http.base_url), timeout_seconds=60.0) as client:
        for version, encoding in ((1, "full"), (2, "delta")):
            with torch.no_grad():
                model.get_input_embeddings().get_parameter("weight")[version] *= 3
            tensors = model.state_dict()
            published = client.publish_weights(tensors, weight_version=version, snapshot=snapshot)
            assert published.encoding == encoding
            assert published.weight_digest == digest_of_tensors(tensors, client.tensors())
            check_scores(service, model)
