"""Both clients against a fake service: what they send, and what they make of the answers."""

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch

from tests.client.fake_service import FakeService, answer, problem
from tests.support.preloaded_process import preloaded
from vigor_client import (
    AsyncVigorClient,
    Completion,
    Group,
    MixedUpAnswerError,
    NotReadyError,
    UnauthenticatedError,
    UnexpectedAnswerError,
    VigorClient,
)
from vigor_client.schemas.scoring import CompletionScore, GroupScore, ScoreResponse, Timing, Usage
from vigor_client.schemas.service import Health

URL = "http://service"
DIGEST = "xxh3-128:" + "0" * 32
GROUP = Group(id="q", prompt_ids=[1, 2], completions=[Completion(ids=[3]), Completion(text="four")])


def scores(*, sizes: tuple[int, ...] = (2,), group_id: str | None = "q", **changed: Any) -> ScoreResponse:  # noqa: ANN401 - any field
    completion = CompletionScore(
        status="ok",
        num_tokens=1,
        grad_norm=1.0,
        scaled_grad_norm=1.0,
        rank=1.5,
        reward=0.0,
        mean_logprob=-1.0,
        mean_entropy=1.0,
        self_certainty=1.0,
    )
    fields: dict[str, Any] = {
        "model": "m",
        "weight_version": 3,
        "weight_digest": DIGEST,
        "reward": "vigor",
        "groups": [GroupScore(id=group_id, completions=[completion] * size) for size in sizes],
        "usage": Usage(prompt_tokens=2, completion_tokens=2, deduplicated_completions=0),
        "timing": Timing(queue_seconds=0.0, compute_seconds=0.0),
    }
    return ScoreResponse(**{**fields, **changed})


def client_of(handler: Callable[[httpx.Request], httpx.Response], **options: Any) -> VigorClient:  # noqa: ANN401 - any option
    return VigorClient(URL, transport=httpx.MockTransport(handler), **options)


class Recorder:
    """Answers every request the same and keeps it."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self.response.status_code, headers=self.response.headers, content=self.response.content)


def test_a_score_sends_what_was_asked_and_nothing_else() -> None:
    service = Recorder(answer(scores()))
    with client_of(service) as client:
        result = client.score([GROUP], weight_version=3, wait_seconds=2.0, ties="ordinal")
    assert result == scores()
    (request,) = service.requests
    assert (request.method, request.url.path) == ("POST", "/v1/score")
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {
        "groups": [{"id": "q", "prompt_ids": [1, 2], "completions": [{"ids": [3]}, {"text": "four"}]}],
        "weight_version": 3,
        "wait_seconds": 2.0,
        "reward": "vigor",
        "ties": "ordinal",
        "truncated": "score",
    }


def test_an_answer_prints_as_a_short_table_and_has_flat_records() -> None:
    shown = str(scores(sizes=(2, 1))).splitlines()
    assert shown[0] == "weights 3, ranked by vigor"
    assert shown[1].split("  ")[0] == "group"
    assert [line.split()[:3] for line in shown[2:]] == [["0", "0", "ok"], ["0", "1", "ok"], ["1", "0", "ok"]]
    assert str(scores(sizes=(30,))).splitlines()[-1] == "… and 10 more"
    records = scores(sizes=(2, 1)).to_records()
    assert [(each["group"], each["group_id"], each["completion"]) for each in records] == [
        (0, "q", 0),
        (0, "q", 1),
        (1, "q", 0),
    ]
    assert all(each["rank"] == 1.5 for each in records)


def test_groups_may_be_plain_mappings() -> None:
    service = Recorder(answer(scores(group_id=None)))
    with client_of(service) as client:
        client.score([{"prompt": "hi", "completions": ["a", [1, 2]]}])
    assert json.loads(service.requests[0].content)["groups"] == [
        {"prompt": "hi", "completions": [{"text": "a"}, {"ids": [1, 2]}]}
    ]


@pytest.mark.parametrize("group", [GROUP, GROUP.model_dump(exclude_unset=True)])
def test_one_group_alone_is_a_list_of_one(group: Group | dict[str, object]) -> None:
    service = Recorder(answer(scores()))
    with client_of(service) as client:
        assert client.score(group) == scores()
    assert json.loads(service.requests[0].content)["groups"] == [
        {"id": "q", "prompt_ids": [1, 2], "completions": [{"ids": [3]}, {"text": "four"}]}
    ]


OF_THE_ENVIRONMENT = """
from vigor_client import AsyncVigorClient, VigorClient
print(VigorClient(), AsyncVigorClient("http://given:1", api_key="given"), sep=";")
"""


@pytest.mark.parametrize(
    ("environment", "client"),
    [
        ({}, "VigorClient('http://127.0.0.1:8000')"),
        ({"VIGOR_URL": "", "VIGOR_API_KEY": ""}, "VigorClient('http://127.0.0.1:8000')"),
        ({"VIGOR_URL": "http://other:2", "VIGOR_API_KEY": "s3cret"}, "VigorClient('http://other:2', api_key='***')"),
    ],
)
def test_url_and_key_come_from_the_environment_unless_they_are_given(environment: dict[str, str], client: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OF_THE_ENVIRONMENT],
        env={**preloaded(), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == f"{client};AsyncVigorClient('http://given:1', api_key='***')\n"


def test_a_wrong_group_is_refused_here_by_its_index() -> None:
    service = Recorder(answer(scores()))
    with client_of(service) as client, pytest.raises(ValueError, match=r"^group 1, `completions`: is missing$"):
        client.score([GROUP, {"prompt": "hi"}])
    assert service.requests == []


def test_the_timeout_of_a_score_covers_the_wait() -> None:
    service = Recorder(answer(scores()))
    with client_of(service, timeout_seconds=20.0) as client:
        client.score([GROUP], wait_seconds=30.0)
    assert service.requests[0].extensions["timeout"] == {"connect": 10.0, "read": 50.0, "write": 50.0, "pool": 50.0}


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (scores(weight_version=4), "weight_version 4 instead of 3"),
        (scores(weight_digest="xxh3-128:" + "1" * 32), "weight_digest"),
        (scores(reward="entropy"), "reward 'entropy' instead of 'vigor'"),
    ],
)
def test_scores_that_were_not_asked_for_are_refused(response: ScoreResponse, said: str) -> None:
    with client_of(Recorder(answer(response))) as client, pytest.raises(UnexpectedAnswerError, match=said):
        client.score([GROUP], weight_version=3, weight_digest=DIGEST)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (scores(sizes=(1,)), "group 0 with 1 scores of 2"),
        (scores(sizes=(2, 2)), "2 groups instead of 1"),
        (scores(group_id="other"), "group 0 with the id 'other' instead of 'q'"),
    ],
)
def test_scores_of_another_request_are_refused(response: ScoreResponse, said: str) -> None:
    service = Recorder(answer(response))
    with client_of(service, max_retries=0) as client, pytest.raises(MixedUpAnswerError, match=said):
        client.score([GROUP])


def test_the_key_is_sent_and_never_shown() -> None:
    service = Recorder(answer(Health(status="ok")))
    with client_of(service, api_key="s3cret") as client:
        client.health()
        assert service.requests[0].headers["Authorization"] == "Bearer s3cret"
        assert repr(client) == "VigorClient('http://service', api_key='***')"


def test_without_a_key_no_authorization_is_sent() -> None:
    service = Recorder(answer(Health(status="ok")))
    with client_of(service) as client:
        client.health()
        assert "Authorization" not in service.requests[0].headers
        assert repr(client) == "VigorClient('http://service')"


@pytest.mark.parametrize("key", ["", "with space", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as raised:
        VigorClient(URL, api_key=key)
    assert not key or key not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://service", "http://", "http://user:s3cret@service", "http://s/?x=1", "http://a\n"]
)
def test_a_url_that_is_no_services_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL") as raised:
        VigorClient(url)
    assert "s3cret" not in str(raised.value)


def test_a_service_may_live_under_a_path() -> None:
    service = Recorder(answer(Health(status="ok")))
    with VigorClient("http://proxy/scorer/", transport=httpx.MockTransport(service)) as client:
        client.health()
    assert service.requests[0].url.path == "/scorer/healthz"


@pytest.mark.parametrize(
    "option",
    [
        {"timeout_seconds": 0.0},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": float("inf")},
        {"timeout_seconds": 1e11},
        {"max_retries": -1},
    ],
)
def test_options_without_sense_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        VigorClient(URL, **option)


def test_a_service_that_is_not_ready_is_an_answer_and_asked_once() -> None:
    service = Recorder(answer(Health(status="unavailable", reason="loading"), status=503))
    with client_of(service) as client:
        assert client.ready() == Health(status="unavailable", reason="loading")
    assert len(service.requests) == 1


def test_waiting_for_a_starting_service_ends_when_it_is_ready() -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    steps = iter(
        [
            refused,
            lambda _: problem(503, "loading"),
            lambda _: httpx.Response(502, text="bad gateway"),
            lambda _: answer(Health(status="unavailable", reason="loading"), status=503),
            lambda _: answer(Health(status="ok")),
        ]
    )
    with client_of(lambda request: next(steps)(request)) as client:
        client.wait_until_ready(30.0)
    assert list(steps) == []


def test_waiting_ends_in_time_with_the_last_reason() -> None:
    service = Recorder(answer(Health(status="unavailable", reason="the model is loading"), status=503))
    with (
        client_of(service) as client,
        pytest.raises(NotReadyError, match=r"not ready after 0.3 s: the model is loading"),
    ):
        client.wait_until_ready(0.3)


def test_waiting_does_not_hide_a_refusal() -> None:
    with client_of(Recorder(problem(401, "unauthenticated"))) as client, pytest.raises(UnauthenticatedError):
        client.wait_until_ready(30.0)


def test_metrics_are_numbers_by_series() -> None:
    text = '# HELP vigor_requests Requests.\nvigor_requests_total{code="200"} 3.0\nvigor_queued_tokens 12.0\n'
    with client_of(Recorder(httpx.Response(200, text=text))) as client:
        assert client.metrics() == {'vigor_requests_total{code="200"}': 3.0, "vigor_queued_tokens": 12.0}
    with client_of(Recorder(httpx.Response(200, text="<html>"))) as client, pytest.raises(UnexpectedAnswerError):
        client.metrics()


def public_methods(client: type) -> dict[str, Callable[..., object]]:
    return {name: value for name, value in vars(client).items() if callable(value) and not name.startswith("_")}


def test_the_clients_have_the_same_methods_and_arguments() -> None:
    blocking, awaited = public_methods(VigorClient), public_methods(AsyncVigorClient)
    awaited["close"] = awaited.pop("aclose")
    assert blocking.keys() == awaited.keys()
    for name in blocking:
        assert inspect.signature(blocking[name]) == inspect.signature(awaited[name]), name
        assert inspect.iscoroutinefunction(awaited[name]), name


def both(handler: Callable[[httpx.Request], httpx.Response], method: str, *args: Any, **kwargs: Any) -> list[Any]:  # noqa: ANN401 - any method
    """What the blocking and the async client return."""

    async def awaited() -> object:
        async with AsyncVigorClient(URL, transport=httpx.MockTransport(handler)) as client:
            return await getattr(client, method)(*args, **kwargs)

    with client_of(handler) as client:
        return [getattr(client, method)(*args, **kwargs), asyncio.run(awaited())]


@pytest.mark.parametrize("method", ["weights", "tensors", "engines", "health", "ready"])
def test_the_async_client_answers_as_the_blocking_one(method: str) -> None:
    service = FakeService({"a": torch.ones(2, 3)})
    first, second = both(service, method)
    assert first == second
    assert service.calls[0] == service.calls[1]


def test_both_clients_ask_for_a_number_of_engines() -> None:
    service = FakeService({})
    first, second = both(service, "scale", 3)
    assert first == second
    assert [engine.number for engine in first.engines] == [0, 1, 2]
    assert service.calls == ["PUT /v1/engines"] * 2


@pytest.mark.parametrize("number", [0, 1025])
def test_a_number_of_engines_that_cannot_be_is_not_sent(number: int) -> None:
    service = FakeService({})
    with client_of(service) as client, pytest.raises(ValueError, match="num_engines"):
        client.scale(number)
    assert service.calls == []


def test_the_async_client_scores_as_the_blocking_one() -> None:
    service = Recorder(answer(scores()))
    first, second = both(service, "score", [GROUP], wait_seconds=1.0)
    assert first == second
    assert service.requests[0].content == service.requests[1].content


def test_the_async_client_can_be_cancelled_while_it_waits_to_retry() -> None:
    async def cancelled() -> None:
        refusing = httpx.MockTransport(lambda _: problem(429, "queue_full", headers={"Retry-After": "60"}))
        async with AsyncVigorClient(URL, transport=refusing) as client, asyncio.timeout(0.1):
            await client.weights()

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())


def test_the_blocking_client_works_inside_a_running_loop() -> None:
    async def inside() -> Health:
        with client_of(Recorder(answer(Health(status="ok")))) as client:
            return client.ready()

    assert asyncio.run(inside()).status == "ok"
