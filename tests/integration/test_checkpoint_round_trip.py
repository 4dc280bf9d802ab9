"""A saved model is the same model whichever way it comes: at start, pushed over HTTP, from disk, after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.live_service import LiveService, live_service
from tests.support.tiny_models import save_tiny_checkpoint
from vigor_client import InvalidRequestError, VigorClient, WeightSnapshot, checkpoint_tensors
from vigor_client.schemas.weights import WeightsInfo
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import load_policy
from vigor_service.runtime import LoadedModel


@contextmanager
def service_of(directory: Path, **settings: Any) -> Iterator[tuple[LiveService, VigorClient]]:  # noqa: ANN401 - of Settings
    """A service that was started on a directory, with a client of it."""

    def load() -> LoadedModel:
        policy = load_policy(str(directory), dtype="float32")
        engine = Engine(
            policy.model, name=policy.name, method="rules"
        )  # one method: norms are the same to the last bit
        return LoadedModel(engine, policy.tokenizer)  # pyright: ignore[reportArgumentType] - see __main__

    with (
        live_service(None, load_model=load, **settings) as service,
        VigorClient(str(service.http.base_url), timeout_seconds=30.0) as client,
    ):
        yield service, client


def save_trained(served: Path, directory: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:  # noqa: ANN401
    """Save what a trainer would, which is not what is served."""
    model = AutoModelForCausalLM.from_pretrained(served, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    cast("torch.nn.Module", model).to(dtype)
    model.save_pretrained(directory, **options)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((served / name).read_bytes())
    return directory


def what_it_is(service: LiveService, client: VigorClient) -> tuple[str, list[float]]:
    return client.weights().weight_digest, service.norms()


def from_disk(service: LiveService, directory: Path, version: int) -> WeightsInfo:
    body = {"model_path": str(directory), "weight_version": version}
    answer = service.http.post("/update_weights_from_disk", json=body)
    assert answer.json()["success"], answer.text
    return WeightsInfo.model_validate_json(service.http.get("/v1/weights").content)


# Those that are slow are served in other tests of this module too.
@pytest.mark.parametrize(
    "family",
    [
        "mixtral",
        "gpt_oss",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("deepseek_v3", "qwen2-tied", "granitemoe", "qwen3_moe", "llama")
        ),
    ],
)
def test_a_saved_model_is_the_same_model_whichever_way_it_comes(family: str, tmp_path: Path) -> None:
    served = save_tiny_checkpoint(tmp_path / "served", family)
    trained = save_trained(served, tmp_path / "trained", max_shard_size="100KB")
    with service_of(trained) as (service, client):
        expected = what_it_is(service, client)
    with service_of(served, weights_root=tmp_path) as (service, client):
        old = what_it_is(service, client)
        assert old != expected
        published = client.publish_weights(checkpoint_tensors(trained), weight_version=1)
        assert (published.weight_version, published.encoding) == (1, "checkpoint")
        assert what_it_is(service, client) == expected
        from_disk(service, served, 2)
        assert what_it_is(service, client) == old
        from_disk(service, trained, 3)
        assert what_it_is(service, client) == expected


def test_a_checkpoint_in_16_bits_is_what_a_service_in_32_starts_with(tmp_path: Path) -> None:
    served = save_tiny_checkpoint(tmp_path / "served", "qwen3_moe")
    trained = save_trained(served, tmp_path / "trained", dtype=torch.bfloat16)
    with service_of(trained) as (service, client):
        expected = what_it_is(service, client)
    with service_of(served, weights_root=tmp_path) as (service, client):
        published = client.publish_weights(checkpoint_tensors(trained), weight_version=1)
        assert what_it_is(service, client) == expected
        assert published.sent_bytes < client.weights().num_bytes


def test_a_restart_comes_back_with_a_checkpoint_and_with_changes_of_it(tmp_path: Path) -> None:
    served = save_tiny_checkpoint(tmp_path / "served", "mixtral")
    trained = save_trained(served, tmp_path / "trained")
    with service_of(served, state_dir=tmp_path / "state") as (service, client):
        client.publish_weights(checkpoint_tensors(trained), weight_version=1)
        name, tensor = next(iter(AutoModelForCausalLM.from_pretrained(trained).state_dict().items()))
        client.publish_weights({name: tensor + 1}, weight_version=2, partial=True)
        expected = what_it_is(service, client)
    with service_of(served, state_dir=tmp_path / "state") as (service, client):
        assert client.weights().weight_version == 2
        assert what_it_is(service, client) == expected


def test_the_same_names_are_sent_once_and_a_snapshot_sends_changes(tmp_path: Path) -> None:
    served = save_tiny_checkpoint(tmp_path / "served", "llama")
    with service_of(served) as (_service, client):
        assert client.publish_weights(checkpoint_tensors(served), weight_version=1).sent_bytes == 0
        snapshot = WeightSnapshot()
        first = save_trained(served, tmp_path / "first")
        client.publish_weights(checkpoint_tensors(first), weight_version=2, snapshot=snapshot)
        assert snapshot.weight_digest == client.weights().weight_digest


def test_a_wrong_checkpoint_is_refused_and_the_old_weights_serve_on(tmp_path: Path) -> None:
    served = save_tiny_checkpoint(tmp_path / "served", "qwen3_moe")
    other = save_tiny_checkpoint(tmp_path / "other", "mixtral")
    with service_of(served) as (service, client):
        before = what_it_is(service, client)
        with pytest.raises(InvalidRequestError, match="the model has no such tensor"):
            client.publish_weights(checkpoint_tensors(other), weight_version=1)
        assert what_it_is(service, client) == before
