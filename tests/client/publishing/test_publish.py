"""Publishing against a fake service: what is sent, what is refused, and what is left behind."""

import asyncio
import weakref
from collections.abc import Callable, Iterator, Mapping

import httpx
import numpy as np
import pytest
import torch

from tests.client.fake_service import FakeService, problem
from vigor_client import (
    AsyncVigorClient,
    ConnectionLostError,
    InvalidRequestError,
    LoadingError,
    ProblemError,
    PublishError,
    PublishResult,
    TensorsRefusedError,
    VigorClient,
    digest_of_tensors,
)
from vigor_client.publishing.full_plan import make_plan
from vigor_client.schemas.weights import CommitResponse, TensorInfo, TensorList

UPDATES = "/v1/weights/updates"
SENDING = [
    "GET /v1/weights/tensors",
    "GET /v1/weights",
    f"POST {UPDATES}",
    f"PUT {UPDATES}/u1/files/model-00001-of-00001.safetensors",
    f"POST {UPDATES}/u1/commit",
]


def old_weights() -> dict[str, torch.Tensor]:
    return {"embed": torch.arange(6.0).reshape(3, 2), "scale": torch.ones(2), "half": torch.ones(3).bfloat16()}


def new_weights() -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in old_weights().items()}


def service(**aliases: list[str]) -> FakeService:
    return FakeService(old_weights(), aliases)


def publish(fake: FakeService, tensors: Mapping[str, torch.Tensor], *, max_retries: int = 0) -> PublishResult:
    with VigorClient("http://service", transport=httpx.MockTransport(fake), max_retries=max_retries) as client:
        return client.publish_weights(tensors, weight_version=7)


def refused(fake: FakeService, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    with pytest.raises(TensorsRefusedError) as raised:
        publish(fake, tensors)
    assert fake.calls == ["GET /v1/weights/tensors"]
    return raised.value.faults


def test_new_weights_are_sent_and_serve_under_the_digest_computed_here() -> None:
    fake = service()
    published = publish(fake, new_weights())
    assert fake.calls == SENDING
    assert fake.weight_version == 7
    assert all(torch.equal(fake.tensors[name], tensor) for name, tensor in new_weights().items())
    assert published.weight_digest == fake.tensor_list().weight_digest
    assert (published.weight_version, published.num_changed_tensors) == (7, 3)
    assert published.sent_bytes == int(fake.requests[3].headers["Content-Length"])


def test_weights_that_serve_already_are_not_sent() -> None:
    fake = service()
    fake.weight_version = 4
    published = publish(fake, old_weights())
    assert fake.calls == ["GET /v1/weights/tensors", "GET /v1/weights"]
    assert published == PublishResult(
        4, fake.tensor_list().weight_digest, sent_bytes=0, num_changed_tensors=0, encoding=None
    )


@pytest.mark.parametrize("state", ["poisoned", "applying"])
def test_equal_weights_are_sent_to_a_service_that_is_not_ready(state: str) -> None:
    fake = service()
    fake.state = "poisoned" if state == "poisoned" else "applying"
    assert publish(fake, old_weights()).num_changed_tensors == 0
    assert fake.calls == SENDING
    assert fake.state == "ready"


def test_the_async_client_publishes_alike() -> None:
    blocking, awaited = service(), service()

    async def publish_async() -> PublishResult:
        async with AsyncVigorClient("http://service", transport=httpx.MockTransport(awaited)) as client:
            return await client.publish_weights(new_weights(), weight_version=7)

    assert publish(blocking, new_weights()) == asyncio.run(publish_async())
    assert blocking.calls == awaited.calls
    assert blocking.requests[3].content == awaited.requests[3].content


def test_all_faults_are_named_at_once_and_nothing_is_sent() -> None:
    tensors = {"scale": torch.ones(3), "half": torch.tensor([1.0, float("nan"), 2.0]), "stranger": torch.ones(1)}
    assert refused(service(), tensors) == {
        "embed": "missing",
        "scale": "has shape [3], the service needs [2]",
        "half": "holds values that are not finite in bfloat16",
        "stranger": "the service has no such tensor",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_a_value_that_is_not_finite_in_the_services_dtype_is_refused(value: float) -> None:
    embed = torch.full((3, 2), 1.0, dtype=torch.float64)
    embed[2, 1] = value
    faults = refused(service(), {**new_weights(), "embed": embed})
    assert faults == {"embed": "holds values that are not finite in float32"}


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (torch.ones(2, dtype=torch.int64), "has dtype torch.int64, which cannot be converted to the service's float32"),
        (torch.ones(2).to_sparse(), "has no dense data"),
        (torch.ones(2, device="meta"), "has no dense data"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(tensor: torch.Tensor, fault: str) -> None:
    assert fault in refused(service(), {**new_weights(), "scale": tensor})["scale"]


class Shard(torch.Tensor):
    """Stands for a distributed tensor, which holds only a part."""


def test_a_part_of_a_tensor_is_refused() -> None:
    shard = torch.ones(2).as_subclass(Shard)
    assert "is a Shard; give a plain tensor" in refused(service(), {**new_weights(), "scale": shard})["scale"]


def test_a_dtype_this_client_cannot_write_is_refused() -> None:
    wanted = TensorList(
        weight_version=0, weight_digest="", tensors=[TensorInfo(name="a", dtype="int3", shape=[1], checksum="")]
    )
    with pytest.raises(TensorsRefusedError, match="a: the service holds int3"):
        make_plan({"a": torch.ones(1)}, wanted)


def test_trainer_tensors_are_cast_to_the_services_dtype() -> None:
    fake = service()
    wider = {name: tensor.double().requires_grad_() for name, tensor in new_weights().items()}
    publish(fake, wider)
    assert fake.tensors["half"].dtype == torch.bfloat16
    assert torch.equal(fake.tensors["half"], new_weights()["half"])


def test_tensors_that_are_not_contiguous_are_sent_in_order() -> None:
    fake = service()
    publish(fake, {**new_weights(), "embed": torch.arange(6.0).reshape(2, 3).T})
    assert fake.tensors["embed"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_parameters_are_tensors() -> None:
    fake = service()
    publish(fake, {name: torch.nn.Parameter(tensor) for name, tensor in new_weights().items()})
    assert fake.weight_version == 7


@pytest.mark.parametrize("given", [["embed"], ["head"], ["embed", "head"]])
def test_a_tied_tensor_may_be_given_under_any_of_its_names(given: list[str]) -> None:
    fake = service(embed=["head"])
    tensors = new_weights()
    embed = tensors.pop("embed")
    publish(fake, {**tensors, **dict.fromkeys(given, embed)})
    assert torch.equal(fake.tensors["embed"], embed)
    assert sorted(fake.tensors) == ["embed", "half", "scale"]


def test_a_stale_tied_head_is_refused() -> None:
    stale = {**new_weights(), "head": old_weights()["embed"]}
    faults = refused(service(embed=["head"]), stale)
    assert faults == {"head": "differs from embed, to which it is tied: one of the two is stale"}


def test_a_refused_file_drops_the_update_and_says_why() -> None:
    fake = service()
    fake.instead[f"PUT {UPDATES}"] = lambda _: problem(422, "invalid_request")
    with pytest.raises(InvalidRequestError):
        publish(fake, new_weights())
    assert fake.calls == [*SENDING[:4], f"DELETE {UPDATES}/u1"]
    assert not fake.has_open_update
    assert fake.weight_version == 0


def test_a_failed_clean_up_does_not_hide_the_reason() -> None:
    fake = service()
    fake.instead[f"POST {UPDATES}/u1/commit"] = lambda _: problem(422, "invalid_request")
    fake.instead["DELETE /"] = lambda _: problem(500, "internal")
    with pytest.raises(InvalidRequestError):
        publish(fake, new_weights())


def test_an_interrupt_drops_the_update_too() -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    fake = service()
    fake.instead[f"PUT {UPDATES}"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        publish(fake, new_weights())
    assert fake.calls[-1] == f"DELETE {UPDATES}/u1"


async def test_a_cancelled_task_drops_the_update_too() -> None:
    fake = service()

    sending = asyncio.Event()

    async def serve(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            sending.set()
            await asyncio.Event().wait()
        await request.aread()
        return fake(request)

    async with AsyncVigorClient("http://service", transport=httpx.MockTransport(serve)) as client:
        task = asyncio.create_task(client.publish_weights(new_weights(), weight_version=7))
        await asyncio.wait_for(sending.wait(), timeout=20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert fake.calls[-1] == f"DELETE {UPDATES}/u1"


def lost(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("reset", request=request)


@pytest.mark.parametrize("step", [f"PUT {UPDATES}", f"POST {UPDATES}/u1/commit"])
def test_files_and_commits_are_sent_again(step: str) -> None:
    fake = service()
    fake.instead[step] = lost
    publish(fake, new_weights(), max_retries=1)
    assert fake.weight_version == 7


def opened_and_lost(fake: FakeService) -> Callable[[httpx.Request], httpx.Response]:
    """The update is opened, and the answer does not arrive."""

    def handle(request: httpx.Request) -> httpx.Response:
        fake(request)
        return lost(request)

    return handle


def test_an_update_whose_opening_was_not_answered_is_opened_again_by_the_same_name() -> None:
    fake = service()
    fake.instead[f"POST {UPDATES}"] = opened_and_lost(fake)
    publish(fake, new_weights(), max_retries=1)
    openings = [request for request in fake.requests if request.url.path == UPDATES]
    assert len({request.headers["Idempotency-Key"] for request in openings}) == 1
    assert fake.weight_version == 7


def test_an_update_that_the_service_lost_is_begun_again() -> None:
    fake = service()
    fake.instead[f"PUT {UPDATES}"] = lambda _: problem(404, "not_found")  # it was restarted, or the update expired
    publish(fake, new_weights())
    assert fake.weight_version == 7
    assert not fake.has_open_update


def test_an_update_that_was_committed_before_the_service_lost_it_is_not_sent_again() -> None:
    fake = service()

    def committed_and_restarted(request: httpx.Request) -> httpx.Response:
        fake(request)
        return problem(404, "not_found")

    fake.instead[f"POST {UPDATES}/u1/commit"] = committed_and_restarted
    assert publish(fake, new_weights()).weight_version == 7
    assert [call for call in fake.calls if call.startswith("PUT")] == SENDING[3:4]


def test_an_update_that_is_lost_again_and_again_is_an_error() -> None:
    fake = service()

    def lose_all(request: httpx.Request) -> httpx.Response:
        return problem(404, "not_found") if request.method == "PUT" else fake(request)

    with (
        VigorClient("http://service", transport=httpx.MockTransport(lose_all)) as client,
        pytest.raises(ProblemError, match="not_found"),
    ):
        client.publish_weights(new_weights(), weight_version=7)
    assert [request.url.path for request in fake.requests].count(UPDATES) == 2


def test_two_updates_have_two_names() -> None:
    fake = service()
    publish(fake, new_weights())
    publish(fake, old_weights())
    names = [request.headers["Idempotency-Key"] for request in fake.requests if request.url.path == UPDATES]
    assert len(names) == len(set(names)) == 2


@pytest.mark.parametrize("interruption", [None, KeyboardInterrupt])
def test_an_update_that_may_be_open_is_dropped_by_its_name(interruption: type[BaseException] | None) -> None:
    def unanswered(request: httpx.Request) -> httpx.Response:
        if interruption is not None:
            raise interruption
        return lost(request)

    fake = service()
    fake.instead[f"POST {UPDATES}"] = unanswered
    with pytest.raises(interruption or ConnectionLostError):
        publish(fake, new_weights())
    assert fake.calls[-1] == f"DELETE {UPDATES}/{fake.requests[2].headers['Idempotency-Key']}"


def test_dropping_is_tried_again() -> None:
    fake = service()
    fake.instead[f"PUT {UPDATES}"] = lambda _: problem(422, "invalid_request")
    fake.instead["DELETE /"] = lost
    with pytest.raises(InvalidRequestError):
        publish(fake, new_weights(), max_retries=1)
    assert not fake.has_open_update


def test_an_update_waits_until_another_one_has_ended() -> None:
    fake = service()
    fake.instead[f"POST {UPDATES}"] = lambda _: problem(409, "update_state", headers={"Retry-After": "0.01"})
    publish(fake, new_weights(), max_retries=1)
    assert fake.weight_version == 7


def test_an_update_is_opened_again_when_the_service_was_not_there_yet() -> None:
    fake = service()
    fake.instead[f"POST {UPDATES}"] = lambda _: problem(503, "loading")
    publish(fake, new_weights(), max_retries=1)
    assert fake.weight_version == 7


def test_retries_of_publishing_are_bounded() -> None:
    fake = FakeService({})
    with (
        VigorClient(
            "http://service", transport=httpx.MockTransport(lambda _: problem(503, "loading")), max_retries=0
        ) as client,
        pytest.raises(LoadingError),
    ):
        client.publish_weights({}, weight_version=1)
    assert fake.requests == []


def test_a_service_that_commits_something_else_is_not_believed() -> None:
    fake = service()
    other = CommitResponse(
        weight_version=7, weight_digest="other", num_changed_tensors=1, verify_seconds=0.0, swap_seconds=0.0
    )
    fake.instead[f"POST {UPDATES}/u1/commit"] = lambda _: httpx.Response(200, content=other.model_dump_json())
    with pytest.raises(PublishError, match=r"sent weights 7 .* but the service committed 7 \(other\)"):
        publish(fake, new_weights())


def test_weights_that_change_while_they_are_sent_are_refused() -> None:
    fake, tensors = service(), new_weights()
    serve = fake.__call__

    def change_after_the_checksums(request: httpx.Request) -> httpx.Response:
        response = serve(request)
        if (request.method, request.url.path) == ("GET", "/v1/weights"):
            tensors["embed"].add_(1.0)
        return response

    with (
        VigorClient("http://service", transport=httpx.MockTransport(change_after_the_checksums)) as client,
        pytest.raises(InvalidRequestError),
    ):
        client.publish_weights(tensors, weight_version=7)
    assert fake.weight_version == 0
    assert not fake.has_open_update


def test_a_large_model_goes_in_several_files() -> None:
    wanted = service().tensor_list()
    plan = make_plan(new_weights(), wanted, max_file_bytes=24)
    assert [file.announced.name for file in plan.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert plan.weight_digest == digest_of_tensors(new_weights(), wanted)


class Watched(Mapping[str, torch.Tensor]):
    """Makes a tensor whenever one is asked for, and counts how many are alive by then."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._handed_out: list[weakref.ref[np.ndarray]] = []
        self.most_alive = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        array = self._arrays[name].copy()
        self._handed_out.append(weakref.ref(array))
        self.most_alive = max(self.most_alive, sum(given() is not None for given in self._handed_out))
        return torch.from_numpy(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def test_never_more_than_one_tensor_is_in_memory() -> None:
    tensors = {f"t{number}": torch.full((4,), float(number)) for number in range(6)}
    fake, watched = FakeService({name: tensor + 1 for name, tensor in tensors.items()}), Watched(tensors)
    publish(fake, watched)
    assert fake.weight_version == 7
    assert watched.most_alive == 1
