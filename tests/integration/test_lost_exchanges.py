"""A training step through a network that loses requests and answers: it goes on, and everything is done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from tests.support.live_service import LiveService, live_service
from tests.support.losing_proxy import FirstOfEach, Lose, Loss, Proxy, losing_proxy
from tests.support.preloaded_process import preloaded_children
from vigor_client import Broadcast, ConnectionLostError, PublishResult, SharedDirectory, WeightSnapshot, WeightTransport
from vigor_client.publishing.publish import HTTP, publish
from vigor_client.schemas.scoring import ScoreRequest, ScoreResponse
from vigor_client.transport.connections import Connections
from vigor_client.transport.endpoints import Endpoints
from vigor_client.transport.exchange import Exchange
from vigor_client.transport.retry import RetryPolicy
from vigor_client.transport.wire import BlockingWire, run_blocking

GROUPS = [{"id": f"q{n}", "prompt_ids": [1, 2 + n], "completions": [[3, 4], [5]]} for n in range(3)]
Ways = Mapping[str, Callable[[Path], WeightTransport]]
WAYS: Ways = {"http": lambda _: HTTP, "shared directory": SharedDirectory, "broadcast": lambda _: Broadcast()}


@pytest.fixture(autouse=True, scope="module")
def _ends_are_preloaded() -> Iterator[None]:
    with preloaded_children():
        yield


@dataclass
class OneAt:
    """Loses the exchange of the ``at``-th request, from 0, and no other."""

    loss: Loss
    at: int
    num_requests: int = 0

    def __call__(self, method: str, path: str, headers: Mapping[str, str]) -> Loss | None:  # noqa: ARG002 - a Lose
        self.num_requests += 1
        return self.loss if self.num_requests == self.at + 1 else None


def never(method: str, path: str, headers: Mapping[str, str]) -> Loss | None:
    """Lose nothing."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[LiveService]:
    staging = tmp_path_factory.mktemp("staging")
    with live_service(staging, weights_root=root, allow_broadcast=True) as running:
        yield running


@contextmanager
def calls_through(service: LiveService, lose: Lose) -> Iterator[tuple[Endpoints, Proxy]]:
    """Calls of a client that waits for no longer than it must between two attempts."""
    with losing_proxy(str(service.http.base_url), lose) as proxy:
        connections = Connections(lambda: httpx.Client(base_url=proxy.url))
        exchange = Exchange(BlockingWire(connections), RetryPolicy(), random=lambda: 0.0)
        yield Endpoints(exchange, timeout_seconds=120.0), proxy
        connections.close()


def trained(service: LiveService) -> dict[str, torch.Tensor]:
    """What a trainer would have after a step."""
    tensors = {name: tensor.clone() for name, tensor in service.scorer.parameters.items()}
    tensors["embed.weight"][:2] += 0.5
    return tensors


def step(
    service: LiveService,
    calls: Endpoints,
    *,
    snapshot: WeightSnapshot | None = None,
    partial: bool = False,
    transport: WeightTransport = HTTP,
) -> PublishResult:
    """Publish and score, as a trainer does; everything is done once, and nothing is left."""
    tensors, version = trained(service), service.http.get("/v1/weights").json()["weight_version"] + 1
    num_batches = len(service.scorer.batches)
    sent = {"norm.weight": tensors["norm.weight"], "embed.weight": tensors["embed.weight"]} if partial else tensors
    published = run_blocking(
        publish(calls, sent, weight_version=version, snapshot=snapshot, partial=partial, transport=transport)
    )
    scores = run_blocking(calls.score(asked(published)))
    assert published.weight_version == version
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)
    assert len(service.scorer.batches) == num_batches + 1
    assert scores.groups == expected(service)
    return published


def asked(published: PublishResult) -> ScoreRequest:
    return ScoreRequest.model_validate(
        {"groups": GROUPS, "weight_version": published.weight_version, "weight_digest": published.weight_digest}
    )


def expected(service: LiveService) -> object:
    return ScoreResponse.model_validate(service.score(groups=GROUPS).json()).groups


@pytest.fixture(scope="module")
def num_requests(service: LiveService) -> int:
    with calls_through(service, never) as (calls, proxy):
        step(service, calls)
    assert proxy.requests[-1] == "POST /v1/score"
    return len(proxy.requests)


@pytest.mark.parametrize("loss", Loss)
def test_a_step_goes_on_wherever_one_exchange_is_lost(service: LiveService, num_requests: int, loss: Loss) -> None:
    assert num_requests == 6
    for at in range(num_requests):
        with calls_through(service, OneAt(loss, at)) as (calls, proxy):
            step(service, calls)
        assert len(proxy.requests) == num_requests + 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", [Loss.REQUEST, Loss.ANSWER])
def test_a_step_goes_on_when_each_call_is_lost_once(service: LiveService, root: Path, way: str, loss: Loss) -> None:
    with calls_through(service, FirstOfEach(loss)) as (calls, proxy):
        step(service, calls, transport=WAYS[way](root))
    assert len(proxy.requests) == 12
    assert list(root.iterdir()) == []


def test_changes_alone_go_on_when_each_answer_is_lost_once(service: LiveService) -> None:
    snapshot = WeightSnapshot()
    with calls_through(service, never) as (calls, _):
        step(service, calls, snapshot=snapshot)
    with calls_through(service, FirstOfEach(Loss.ANSWER)) as (calls, _):
        assert step(service, calls, snapshot=snapshot).encoding == "delta"
    with calls_through(service, FirstOfEach(Loss.ANSWER)) as (calls, _):
        assert step(service, calls, partial=True).encoding == "partial"


def test_a_client_that_gives_up_leaves_no_update_open_though_that_is_lost_too(service: LiveService) -> None:
    first = FirstOfEach(Loss.ANSWER)

    def lose(method: str, path: str, headers: Mapping[str, str]) -> Loss | None:
        if method == "PUT":
            return Loss.ANSWER
        return first(method, path, headers) if method == "DELETE" else None

    with calls_through(service, lose) as (calls, proxy), pytest.raises(ConnectionLostError):
        run_blocking(publish(calls, trained(service), weight_version=9))
    assert [request[:6] for request in proxy.requests[-2:]] == ["DELETE", "DELETE"]
    with calls_through(service, never) as (calls, _):
        step(service, calls)
