"""Weights through torch.distributed, between real processes; and how each broadcast that cannot end is ended."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save

from tests.live_service import LiveService, live_service
from tests.pushing import FILE, UPDATES, announce, open_update
from tests.waiting import wait_until
from vigor_client import (
    AsyncVigorClient,
    Broadcast,
    BroadcastError,
    DeadlineExceededError,
    InvalidRequestError,
    Publication,
    VigorClient,
    VigorError,
    WeightSnapshot,
    digest_of_tensors,
)
from vigor_client.broadcast_process import SENDER, BroadcastProcess, End

LIMIT_SECONDS = 3.0
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging"), allow_broadcast=True) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service that waits a short time for bytes."""
    staging = tmp_path_factory.mktemp("staging")
    with live_service(staging, allow_broadcast=True, update_timeout_seconds=LIMIT_SECONDS) as running:
        yield running


def client(service: LiveService) -> VigorClient:
    return VigorClient(str(service.http.base_url), timeout_seconds=60.0, max_retries=0)


def trained(service: LiveService, rows: slice = slice(None)) -> Tensors:
    """What a trainer would have after a step."""
    tensors = {name: tensor.clone() for name, tensor in service.scorer.parameters.items()}
    tensors["embed.weight"][rows] += 0.5
    return tensors


def publish(service: LiveService, tensors: Mapping[str, torch.Tensor], **how: Any) -> Publication:  # noqa: ANN401 - arguments of publish_weights
    with client(service) as to_service:
        version = to_service.weights().weight_version + 1
        return to_service.publish_weights(tensors, weight_version=version, **how)


def serves(service: LiveService, tensors: Tensors) -> bool:
    with client(service) as to_service:
        return digest_of_tensors(tensors, to_service.tensors()) == to_service.weights().weight_digest


@contextmanager
def nothing_changes(service: LiveService) -> Iterator[None]:
    """What is inside fails: the old weights serve on, nothing runs on, and a publication over HTTP works right after."""
    before, norms = service.http.get("/v1/weights").json(), service.norms()
    yield
    assert service.http.get("/v1/weights").json() == before
    assert service.norms() == norms
    wait_until(lambda: not _pumps() and not _threads_of_broadcasts())
    tensors = trained(service)
    assert publish(service, tensors).encoding == "full"
    assert serves(service, tensors)


def _pumps() -> list[int]:
    """Processes of either end."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"vigor_client.broadcast_pump" in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found


def _threads_of_broadcasts() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("broadcast")]


@contextmanager
def listener() -> Iterator[tuple[socket.socket, dict[str, Any]]]:
    """A socket that accepts and says nothing, and the request that sends a service there."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent, {"backend": "gloo", "host": "127.0.0.1", "port": silent.getsockname()[1]}


def opened(service: LiveService, data: bytes, **announced: object) -> str:
    answer = open_update(service.http, announce(data) | announced, version=99)
    assert answer.status_code == 201, answer.text
    return f"{UPDATES}/{answer.json()['update_id']}"


def finish_over_http(service: LiveService, path: str, data: bytes) -> None:
    """The update is still open, and the file may come otherwise."""
    assert service.http.get(path).json()["missing_files"] == [FILE]
    assert service.http.put(f"{path}/files/{FILE}", content=data).status_code == 200
    assert service.http.post(f"{path}/commit").status_code == 200


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    problem = answer.json()
    return answer.status_code, problem["code"], f"{problem['detail']} {problem['errors']}"


# -------------------------------------------------------------------------------------------- what arrives


def test_a_broadcast_ends_with_the_trainers_weights(service: LiveService) -> None:
    tensors = trained(service)
    published = publish(service, tensors, broadcast=Broadcast())
    assert published.encoding == "full"
    assert published.sent_bytes > 0
    assert serves(service, tensors)
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


def test_changes_alone_are_broadcast_in_the_order_of_their_files(service: LiveService) -> None:
    snapshot = WeightSnapshot()
    publish(service, trained(service), snapshot=snapshot)
    tensors = trained(service, slice(0, 2))
    assert publish(service, tensors, snapshot=snapshot, broadcast=Broadcast()).encoding == "delta"
    assert serves(service, tensors)


def test_the_async_client_broadcasts_likewise(service: LiveService) -> None:
    tensors = trained(service)

    async def publish_both() -> None:
        async with AsyncVigorClient(str(service.http.base_url)) as to_service:
            await to_service.publish_weights(tensors, weight_version=7, broadcast=Broadcast())

    asyncio.run(publish_both())
    assert serves(service, tensors)


def test_files_that_came_over_http_are_not_broadcast_again(service: LiveService) -> None:
    first, second = b"came already", bytes(range(256)) * 100_000  # more than one chunk
    announced = [announce(first, name="a.safetensors"), announce(second, name="b.safetensors")]
    path = f"{UPDATES}/{open_update(service.http, *announced).json()['update_id']}"
    assert service.http.put(f"{path}/files/a.safetensors", content=first).status_code == 200
    with sender(len(second)) as (process, request):
        feeding = threading.Thread(target=process.send, args=([second],))
        feeding.start()
        answer = service.http.post(f"{path}/broadcast", json=request)
        feeding.join()
    assert answer.json()["received_files"] == ["a.safetensors", "b.safetensors"]
    assert service.http.post(f"{path}/broadcast", json=request).json() == answer.json()  # nothing is missing
    assert service.http.delete(path).status_code == 204


@contextmanager
def sender(num_bytes: int) -> Iterator[tuple[BroadcastProcess, dict[str, Any]]]:
    """A trainer's end, to be fed by the test."""
    with listener() as (socket_, request):
        end = End(
            rank=SENDER,
            backend="gloo",
            host="127.0.0.1",
            port=request["port"],
            num_bytes=num_bytes,
            timeout_seconds=60.0,
            listener=socket_.fileno(),
        )
        process = BroadcastProcess(end)
    with process:
        yield process, request


# ------------------------------------------------------------------------------------------ what is refused


def test_a_service_that_does_not_allow_it_names_the_setting(tmp_path: Path) -> None:
    with live_service(tmp_path) as service, nothing_changes(service):
        with pytest.raises(InvalidRequestError, match="--allow-broadcast"):
            publish(service, trained(service), broadcast=Broadcast())


@pytest.mark.parametrize(
    ("wrong", "place"),
    [({"host": ""}, "host"), ({"host": "a b"}, "host"), ({"port": 0}, "port"), ({"port": 65536}, "port"), ({"backend": "mpi"}, "backend"), ({"backend": "nccl"}, "backend")],
)
def test_an_address_or_a_backend_that_cannot_be_is_refused_by_name(
    service: LiveService, wrong: dict[str, object], place: str
) -> None:
    data = save(trained(service))
    path = opened(service, data)
    answer = service.http.post(f"{path}/broadcast", json={"backend": "gloo", "host": "127.0.0.1", "port": 9} | wrong)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == [place]
    finish_over_http(service, path, data)


def test_an_update_that_is_not_open_takes_no_broadcast(service: LiveService) -> None:
    body = {"backend": "gloo", "host": "127.0.0.1", "port": 9}
    assert service.http.post(f"{UPDATES}/unknown/broadcast", json=body).status_code == 404


@pytest.mark.parametrize("wrong", [{"backend": "mpi"}, {"host": ""}, {"port": 65536}, {"timeout_seconds": 0.0}])
def test_the_client_refuses_what_cannot_be_before_anything_is_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        replace(Broadcast(), **wrong)


def test_an_address_of_another_machine_is_refused_where_the_trainer_is(service: LiveService) -> None:
    with nothing_changes(service), pytest.raises(BroadcastError, match=r"203\.0\.113\.1 port 0"):
        publish(service, trained(service), broadcast=Broadcast(host="203.0.113.1"))


def test_other_bytes_than_announced_are_refused_and_may_be_sent_again(service: LiveService) -> None:
    data = save(trained(service))
    path = opened(service, data)
    with sender(len(data)) as (process, request):
        feeding = threading.Thread(target=process.send, args=([bytes(len(data))],))
        feeding.start()
        status, code, message = refusal(service.http.post(f"{path}/broadcast", json=request))
        feeding.join()
    assert (status, code) == (422, "invalid_request")
    assert "checksum" in message
    assert FILE in message
    finish_over_http(service, path, data)


# -------------------------------------------------------------------------------------------- what is ended


@pytest.mark.parametrize("peer", ["nobody", "silent"])
def test_a_peer_that_never_comes_ends_with_the_limit(impatient: LiveService, peer: str) -> None:
    """The silent one is accepted, which torch.distributed itself would wait for without a limit."""
    data = save(trained(impatient))
    path = opened(impatient, data)
    with nothing_changes(impatient), listener() as (socket_, request):
        if peer == "nobody":
            socket_.close()
        status, code, message = refusal(impatient.http.post(f"{path}/broadcast", json=request))
        assert (status, code) == (504, "deadline_exceeded")
        assert FILE in message
        assert f"127.0.0.1 port {request['port']}" in message
        assert impatient.http.get(path).json()["missing_files"] == [FILE]
        assert impatient.http.delete(path).status_code == 204


def test_the_client_drops_an_update_that_the_service_gave_up(impatient: LiveService) -> None:
    """This trainer takes longer to begin than the service waits."""
    with nothing_changes(impatient), pytest.raises(DeadlineExceededError, match=r"model-00001-of-00001"):
        publish(impatient, Stuck(trained(impatient), impatient), broadcast=Broadcast())


class Stuck(Mapping[str, torch.Tensor]):
    """Tensors that can be read once, for the checksums; in the middle of the broadcast they wait, then fail."""

    def __init__(self, tensors: Tensors, service: LiveService) -> None:
        self._tensors = tensors
        self._service = service
        self._reads: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._reads:
            wait_until(lambda: self._service.http.get("/metrics").text.count('code="504"') > 0)
        self._reads.add(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Unreadable(Stuck):
    """Tensors that cannot be read a second time."""

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._reads:
            raise RuntimeError("the disk is gone")
        self._reads.add(name)
        return self._tensors[name]


def test_tensors_that_cannot_be_read_are_the_error_of_the_trainer(service: LiveService) -> None:
    with nothing_changes(service), pytest.raises(RuntimeError, match="the disk is gone"):
        publish(service, Unreadable(trained(service), service), broadcast=Broadcast())


TRAINER = """
import sys, torch
from vigor_client import Broadcast, VigorClient

class HalfWay(dict):
    reads = 0
    def __getitem__(self, name):
        self.reads += 1
        if self.reads > 3:
            print("half way", flush=True)
            sys.stdin.read()
        return super().__getitem__(name)

client = VigorClient(sys.argv[1])
wanted = client.tensors().tensors
tensors = HalfWay({info.name: torch.ones(info.shape) for info in wanted})
client.publish_weights(tensors, weight_version=50, broadcast=Broadcast())
"""


def test_a_trainer_that_is_killed_half_way_leaves_nothing_behind(service: LiveService) -> None:
    with nothing_changes(service):
        command = [sys.executable, "-c", TRAINER, str(service.http.base_url)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"half way\n"
            trainer.kill()
        wait_until(lambda: not _pumps())
        (update,) = {service.http.get("/v1/weights").json()["weight_version"]}
        assert update != 50
        _drop_whatever_is_open(service)


def _drop_whatever_is_open(service: LiveService) -> None:
    taken = open_update(service.http, announce(b"x"))
    path = f"{UPDATES}/{taken.json()['update_id']}"
    assert service.http.delete(path).status_code == 204


def test_a_sender_that_is_killed_names_the_file_and_where_it_broke_off(service: LiveService) -> None:
    data = bytes(40 << 20)
    path = opened(service, save(trained(service)))
    assert service.http.delete(path).status_code == 204
    del data


def test_a_trainer_whose_service_dies_gets_an_error(tmp_path: Path) -> None:
    assert issubclass(BroadcastError, VigorError)
    del tmp_path
