"""Publishing some of a model's tensors against a fake service: what is hashed, sent and refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.client.fake_service import FakeService
from vigor_client import (
    AsyncVigorClient,
    PublishResult,
    TensorsRefusedError,
    VigorClient,
    WeightBaseMismatchError,
    WeightSnapshot,
    digest_of_tensors,
)
from vigor_client.publishing.full_plan import make_partial_plan
from vigor_client.schemas.weights import UpdateRequest

Tensors = dict[str, torch.Tensor]
UPDATES = "/v1/weights/updates"
ASKING = ["GET /v1/weights/tensors", "GET /v1/weights"]
SENDING = [
    *ASKING,
    f"POST {UPDATES}",
    f"PUT {UPDATES}/u1/files/model-00001-of-00001.safetensors",
    f"POST {UPDATES}/u1/commit",
]


def served_weights() -> Tensors:
    return {"embed": torch.arange(6.0).reshape(3, 2), "scale": torch.ones(2), "half": torch.ones(3).bfloat16()}


def publish(fake: FakeService, tensors: Mapping[str, torch.Tensor], *, version: int = 7) -> PublishResult:
    with VigorClient("http://service", transport=httpx.MockTransport(fake), max_retries=0) as client:
        return client.publish_weights(tensors, weight_version=version, partial=True)


def opened(fake: FakeService) -> UpdateRequest:
    [request] = [request for request in fake.requests if (request.method, request.url.path) == ("POST", UPDATES)]
    return UpdateRequest.model_validate_json(request.content)


def test_a_part_is_sent_with_its_base_and_serves_under_the_digest_of_all() -> None:
    fake = FakeService(served_weights())
    before, scale = fake.tensor_list(), torch.full((2,), 3.0)
    published = publish(fake, {"scale": scale})
    assert fake.calls == SENDING
    assert published.weight_digest == digest_of_tensors({**served_weights(), "scale": scale}, before)
    assert (published.encoding, published.num_changed_tensors) == ("partial", 1)
    assert (opened(fake).base_version, opened(fake).base_digest) == (0, before.weight_digest)
    assert published.base_digest == before.weight_digest
    assert torch.equal(fake.tensors["scale"], scale)
    assert torch.equal(fake.tensors["embed"], served_weights()["embed"])


def test_tensors_that_the_service_has_already_are_left_out() -> None:
    fake = FakeService(served_weights())
    plan = make_partial_plan({**served_weights(), "scale": torch.zeros(2)}, fake.tensor_list())
    alone = make_partial_plan({"scale": torch.zeros(2)}, fake.tensor_list())
    assert [file.announced for file in plan.files] == [file.announced for file in alone.files]
    assert plan.weight_digest == alone.weight_digest


def test_nothing_is_sent_when_nothing_differs() -> None:
    fake = FakeService(served_weights())
    fake.weight_version = 4
    published = publish(fake, {"scale": torch.ones(2)})
    assert fake.calls == ASKING
    digest = fake.tensor_list().weight_digest
    assert published == PublishResult(4, digest, 0, 0, encoding=None, base_digest=digest)


class OnlyGiven(Mapping[str, torch.Tensor]):
    """Counts how often each tensor is made."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.made: list[str] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.made.append(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def test_tensors_that_all_differ_are_made_once_for_the_checksums_and_once_for_the_stream() -> None:
    tensors = OnlyGiven({"scale": torch.zeros(2), "half": torch.zeros(3)})
    publish(FakeService(served_weights()), tensors)
    assert sorted(tensors.made) == ["half", "half", "scale", "scale"]


def test_a_tied_tensor_may_be_given_under_its_alias() -> None:
    fake = FakeService(served_weights(), {"embed": ["head"]})
    publish(fake, {"head": torch.zeros(3, 2)})
    assert torch.equal(fake.tensors["embed"], torch.zeros(3, 2))


def test_weights_that_somebody_else_publishes_meanwhile_are_told_to_the_caller() -> None:
    fake = FakeService(served_weights())

    def overtaken(request: httpx.Request) -> httpx.Response:
        response = fake(request)
        if request.url.path == "/v1/weights/tensors":
            fake.tensors["half"] = torch.zeros(3).bfloat16()
        return response

    with (
        VigorClient("http://service", transport=httpx.MockTransport(overtaken), max_retries=0) as client,
        pytest.raises(WeightBaseMismatchError),
    ):
        client.publish_weights({"scale": torch.zeros(2)}, weight_version=7, partial=True)
    assert fake.calls[:3] == SENDING[:3]
    assert not fake.has_open_update
    assert torch.equal(fake.tensors["scale"], torch.ones(2))


def test_a_poisoned_service_refuses_parts_also_if_none_seems_to_differ() -> None:
    fake = FakeService(served_weights())
    fake.state = "poisoned"
    with pytest.raises(WeightBaseMismatchError):
        publish(fake, {"scale": torch.ones(2)})


@pytest.mark.parametrize(
    ("tensors", "faults"),
    [
        ({"stranger": torch.ones(1)}, {"stranger": "the service has no such tensor"}),
        (
            {"scale": torch.ones(3), "half": torch.tensor([1.0, float("nan"), 2.0])},
            {
                "scale": "has shape [3], the service needs [2]",
                "half": "holds values that are not finite in bfloat16",
            },
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(tensors: Tensors, faults: dict[str, str]) -> None:
    fake = FakeService(served_weights())
    with pytest.raises(TensorsRefusedError) as raised:
        publish(fake, tensors)
    assert raised.value.faults == faults
    assert fake.calls == ASKING[:1]


def test_no_tensor_at_all_is_a_mistake_of_the_caller() -> None:
    fake = FakeService(served_weights())
    with pytest.raises(ValueError, match="at least one tensor"):
        publish(fake, {})
    assert fake.calls == []


def test_parts_and_a_snapshot_exclude_each_other() -> None:
    fake = FakeService(served_weights())
    with (
        VigorClient("http://service", transport=httpx.MockTransport(fake)) as client,
        pytest.raises(ValueError, match="exclude each other"),
    ):
        client.publish_weights(served_weights(), weight_version=1, snapshot=WeightSnapshot(), partial=True)
    assert fake.calls == []


def test_the_async_client_publishes_parts_alike() -> None:
    blocking, awaited = FakeService(served_weights()), FakeService(served_weights())

    async def publish_async() -> PublishResult:
        async with AsyncVigorClient("http://service", transport=httpx.MockTransport(awaited)) as client:
            return await client.publish_weights({"scale": torch.zeros(2)}, weight_version=7, partial=True)

    assert publish(blocking, {"scale": torch.zeros(2)}) == asyncio.run(publish_async())
    assert blocking.calls == awaited.calls


@given(
    rounds=st.lists(
        st.dictionaries(st.sampled_from(["embed", "scale", "half"]), st.integers(0, 3), min_size=1), max_size=4
    )
)
def test_any_parts_one_after_the_other_end_with_the_trainers_bytes(rounds: list[dict[str, int]]) -> None:
    fake, trained = FakeService(served_weights()), served_weights()
    for version, values in enumerate(rounds, start=1):
        part = {name: torch.full_like(trained[name], value) for name, value in values.items()}
        trained |= part
        published = publish(fake, part, version=version)
        assert published.weight_digest == digest_of_tensors(trained, fake.tensor_list())
    torch.testing.assert_close(fake.tensors, trained, rtol=0, atol=0)
