"""Publishing changes alone, from the client to a running service: the service ends with the trainer's very bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.client.fake_service import FakeService, problem
from tests.support.live_service import LiveService, live_service
from tests.support.pushing import UPDATES, announce
from vigor_client import PublishResult, VigorClient, WeightBaseMismatchError, WeightSnapshot, digest_of_tensors
from vigor_client.weight_format.delta_index import INDEX_NAME

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path / "staging") as running:
        yield running


@pytest.fixture
def client(service: LiveService) -> Iterator[VigorClient]:
    with VigorClient(str(service.http.base_url), timeout_seconds=30.0) as client:
        yield client


def weights_of(service: LiveService) -> Tensors:
    return {name: tensor.clone() for name, tensor in service.scorer.parameters.items()}


def train(tensors: Tensors, row: int) -> None:
    tensors["embed.weight"][row] += 0.25


def test_every_step_after_the_first_sends_changes_and_serves_the_trainers_bytes(
    service: LiveService, client: VigorClient
) -> None:
    snapshot, tensors = WeightSnapshot(), weights_of(service)
    published: list[PublishResult] = []
    for version in range(1, 5):
        train(tensors, version)
        published.append(client.publish_weights(tensors, weight_version=version, snapshot=snapshot))
        assert published[-1].weight_digest == digest_of_tensors(tensors, client.tensors())
        torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)
    assert [publication.encoding for publication in published] == ["full", "delta", "delta", "delta"]
    assert [publication.num_changed_tensors for publication in published] == [1] * 4
    assert all(publication.sent_bytes < published[0].sent_bytes / 2 for publication in published[1:])


def test_a_trainer_that_starts_from_the_served_weights_never_sends_them(
    service: LiveService, client: VigorClient
) -> None:
    snapshot, tensors = WeightSnapshot(), weights_of(service)
    assert client.publish_weights(tensors, weight_version=1, snapshot=snapshot).encoding is None
    train(tensors, 3)
    assert client.publish_weights(tensors, weight_version=2, snapshot=snapshot).encoding == "delta"
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


def test_all_is_sent_again_as_an_anchor(service: LiveService, client: VigorClient) -> None:
    snapshot, tensors = WeightSnapshot(anchor_every=3), weights_of(service)
    encodings: list[str | None] = []
    for version in range(1, 8):
        train(tensors, version)
        encodings.append(client.publish_weights(tensors, weight_version=version, snapshot=snapshot).encoding)
    assert encodings == ["full", "delta", "delta", "full", "delta", "delta", "full"]


def test_all_is_sent_where_most_has_changed(service: LiveService, client: VigorClient) -> None:
    snapshot, tensors = WeightSnapshot(), weights_of(service)
    client.publish_weights(tensors, weight_version=1, snapshot=snapshot)
    noise = torch.Generator().manual_seed(1)
    tensors["embed.weight"] = torch.randn(tensors["embed.weight"].shape, generator=noise)
    assert client.publish_weights(tensors, weight_version=2, snapshot=snapshot).encoding == "full"


def test_all_is_sent_when_somebody_else_has_published_meanwhile(service: LiveService, client: VigorClient) -> None:
    snapshot, tensors = WeightSnapshot(), weights_of(service)
    client.publish_weights(tensors, weight_version=1, snapshot=snapshot)
    others = weights_of(service)
    train(others, 9)
    client.publish_weights(others, weight_version=1)
    train(tensors, 3)
    assert client.publish_weights(tensors, weight_version=2, snapshot=snapshot).encoding == "full"
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


def test_a_poisoned_service_refuses_changes_and_gets_all(service: LiveService, client: VigorClient) -> None:
    snapshot, tensors = WeightSnapshot(), weights_of(service)
    client.publish_weights(tensors, weight_version=1, snapshot=snapshot)
    broken = weights_of(service)
    train(broken, 5)
    service.scorer.fail_loading = RuntimeError("on purpose")
    with pytest.raises(Exception, match="failed half-way"):
        client.publish_weights(broken, weight_version=2)
    service.scorer.fail_loading = None
    train(tensors, 3)
    assert client.publish_weights(tensors, weight_version=3, snapshot=snapshot).encoding == "full"
    assert client.weights().state == "ready"
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


def test_a_base_that_is_refused_is_answered_by_sending_all() -> None:
    """As when others publish between the client's question and its update."""
    tensors = {"embed": torch.arange(600.0)}
    fake, snapshot = FakeService(tensors), WeightSnapshot()
    with VigorClient("http://service", transport=httpx.MockTransport(fake), max_retries=0) as client:
        client.publish_weights(tensors, weight_version=1, snapshot=snapshot)
        fake.instead[f"POST {UPDATES}"] = lambda _: problem(409, "weight_base_mismatch", have=7, want=0)
        changed = {"embed": torch.arange(600.0).index_fill(0, torch.tensor([4]), -1.0)}
        assert client.publish_weights(changed, weight_version=2, snapshot=snapshot).encoding == "full"
    assert torch.equal(fake.tensors["embed"], changed["embed"])


def test_a_full_update_whose_base_is_refused_is_not_sent_twice() -> None:
    fake = FakeService({"embed": torch.zeros(4)})
    fake.instead[f"POST {UPDATES}"] = lambda _: problem(409, "weight_base_mismatch", have=7, want=0)
    with (
        VigorClient("http://service", transport=httpx.MockTransport(fake), max_retries=0) as client,
        pytest.raises(WeightBaseMismatchError),
    ):
        client.publish_weights({"embed": torch.ones(4)}, weight_version=2)


def test_a_publication_that_fails_leaves_the_snapshot_as_it_was(service: LiveService, client: VigorClient) -> None:
    snapshot, tensors = WeightSnapshot(), weights_of(service)
    client.publish_weights(tensors, weight_version=1, snapshot=snapshot)
    wrong = weights_of(service)
    wrong["norm.weight"][0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        client.publish_weights(wrong, weight_version=2, snapshot=snapshot)
    train(tensors, 3)
    assert client.publish_weights(tensors, weight_version=2, snapshot=snapshot).encoding == "delta"


@pytest.mark.parametrize("missing", ["base_version", "base_digest"])
def test_a_delta_that_does_not_name_its_base_is_refused_at_the_door(service: LiveService, missing: str) -> None:
    base = {"base_version": 0, "base_digest": "xxh3-128:" + "0" * 32}
    del base[missing]
    body = {"weight_version": 1, "encoding": "delta", "files": [announce(b"{}", name=INDEX_NAME)], **base}
    answer = service.http.post(UPDATES, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "without its base" in answer.text


def test_the_same_version_with_another_digest_is_no_base(service: LiveService) -> None:
    base = {"base_version": 0, "base_digest": "xxh3-128:" + "0" * 32}
    body = {"weight_version": 1, "encoding": "delta", "files": [announce(b"{}", name=INDEX_NAME)], **base}
    answer = service.http.post(UPDATES, json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "weight_base_mismatch")
    assert answer.json()["have"] == service.http.get("/v1/weights").json()["weight_digest"]
