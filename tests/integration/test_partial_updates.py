"""Publishing some of the tensors to a running service: it ends with the trainer's very bytes, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from tests.support.live_service import LiveService, live_service
from tests.support.pushing import FILE, UPDATES, announce
from vigor_client import VigorClient, WeightBaseMismatchError, WeightSnapshot, digest_of_tensors

Tensors = dict[str, torch.Tensor]
NO_DIGEST = "xxh3-128:" + "0" * 32


@contextmanager
def service_with_client(state_dir: Path | None = None) -> Iterator[tuple[LiveService, VigorClient]]:
    with (
        live_service(None, state_dir=state_dir) as running,
        VigorClient(str(running.http.base_url), timeout_seconds=30.0) as client,
    ):
        yield running, client


def weights_of(service: LiveService) -> Tensors:
    return {name: tensor.clone() for name, tensor in service.scorer.parameters.items()}


def assert_serves(service: LiveService, client: VigorClient, tensors: Tensors) -> None:
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)
    assert client.weights().weight_digest == digest_of_tensors(tensors, client.tensors())


def test_parts_after_parts_the_service_has_the_trainers_bytes() -> None:
    with service_with_client() as (service, client):
        tensors = weights_of(service)
        for version, name in enumerate(["norm.weight", "embed.weight", "norm.weight"], start=1):
            tensors[name] = tensors[name] + 1
            published = client.publish_weights({name: tensors[name]}, weight_version=version, partial=True)
            assert (published.encoding, published.num_changed_tensors) == ("partial", 1)
            assert published.weight_digest == client.weights().weight_digest
            assert_serves(service, client, tensors)


def test_a_restart_serves_whole_and_partial_updates_and_deltas_alike(tmp_path: Path) -> None:
    with service_with_client(tmp_path / "state") as (service, client):
        tensors, snapshot = weights_of(service), WeightSnapshot()
        tensors["embed.weight"][3] += 1
        client.publish_weights(tensors, weight_version=1)
        tensors["norm.weight"][0] += 1
        client.publish_weights({"norm.weight": tensors["norm.weight"]}, weight_version=2, partial=True)
        client.publish_weights(tensors, weight_version=2, snapshot=snapshot)
        tensors["embed.weight"][5] += 1
        assert client.publish_weights(tensors, weight_version=3, snapshot=snapshot).encoding == "delta"
        tensors["norm.weight"][1] += 1
        client.publish_weights({"norm.weight": tensors["norm.weight"]}, weight_version=4, partial=True)
        before = client.weights()
    with service_with_client(tmp_path / "state") as (restarted, client):
        served = client.weights()
        assert (served.weight_version, served.weight_digest) == (before.weight_version, before.weight_digest)
        assert_serves(restarted, client, tensors)


def test_parts_follow_what_the_service_was_started_with(tmp_path: Path) -> None:
    with service_with_client(tmp_path / "state") as (service, client):
        tensors = weights_of(service) | {"norm.weight": torch.zeros(3)}
        client.publish_weights({"norm.weight": torch.zeros(3)}, weight_version=1, partial=True)
    with service_with_client(tmp_path / "state") as (restarted, client):
        assert_serves(restarted, client, tensors)


def test_after_parts_of_more_bytes_than_the_model_all_weights_are_asked_for(tmp_path: Path) -> None:
    with service_with_client(tmp_path / "state") as (service, client):
        tensors = weights_of(service)

        def publish(version: int, *, partial: bool) -> str | None:
            tensors["embed.weight"] += 1  # nearly all of the model, and the file has a header
            given = {"embed.weight": tensors["embed.weight"]} if partial else tensors
            return client.publish_weights(given, weight_version=version, partial=partial).encoding

        assert publish(1, partial=True) == "partial"
        with pytest.raises(WeightBaseMismatchError, match="send a full update"):
            publish(2, partial=True)
        assert publish(3, partial=False) == "full"
        assert publish(4, partial=True) == "partial"
        assert_serves(service, client, tensors)


def test_a_poisoned_service_refuses_parts() -> None:
    with service_with_client() as (service, client):
        tensors = weights_of(service)
        service.scorer.fail_loading = RuntimeError("on purpose")
        with pytest.raises(Exception, match="failed half-way"):
            client.publish_weights({"norm.weight": torch.zeros(3)}, weight_version=1, partial=True)
        service.scorer.fail_loading = None
        with pytest.raises(WeightBaseMismatchError, match="weights are unusable"):
            client.publish_weights({"norm.weight": torch.ones(3)}, weight_version=1, partial=True)
        client.publish_weights(tensors, weight_version=2)
        assert_serves(service, client, tensors)


def opened(http: httpx.Client, data: bytes, **base: object) -> httpx.Response:
    return http.post(UPDATES, json={"weight_version": 1, "encoding": "partial", "files": [announce(data)], **base})


@pytest.mark.parametrize("base", [{}, {"base_version": 0}, {"base_digest": NO_DIGEST}])
def test_parts_that_do_not_name_their_base_are_refused_at_the_door(base: dict[str, object]) -> None:
    with service_with_client() as (service, _):
        answer = opened(service.http, b"x", **base)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "a partial update needs" in answer.text


def test_parts_of_other_weights_are_a_conflict() -> None:
    with service_with_client() as (service, _):
        answer = opened(service.http, b"x", base_version=0, base_digest=NO_DIGEST)
    assert (answer.status_code, answer.json()["code"]) == (409, "weight_base_mismatch")


def test_what_is_wrong_with_parts_is_refused_and_the_old_weights_serve_on() -> None:
    with service_with_client() as (service, client):
        before, data = weights_of(service), save({"norm.weight": torch.zeros(3), "stranger": torch.zeros(1)})
        served = client.weights()
        base = {"base_version": served.weight_version, "base_digest": served.weight_digest}
        path = f"{UPDATES}/{opened(service.http, data, **base).json()['update_id']}"
        service.http.put(f"{path}/files/{FILE}", content=data)
        refused = service.http.post(f"{path}/commit")
        assert refused.status_code == 422
        assert [place["loc"] for place in refused.json()["errors"]] == [["files", FILE, "stranger"]]
        assert_serves(service, client, before)
