"""Weights through torch.distributed, between real processes; and how each broadcast that cannot end is ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save

from tests.support.forked_program import SERVER_VARIABLE
from tests.support.live_service import LiveService, live_service
from tests.support.preloaded_process import preloaded_children
from tests.support.pushing import FILE, UPDATES, announce, open_update
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client import (
    AsyncVigorClient,
    Broadcast,
    BroadcastError,
    DeadlineExceededError,
    InvalidRequestError,
    PublishResult,
    TransportError,
    VigorClient,
    WeightSnapshot,
    digest_of_tensors,
)
from vigor_client.weight_format.broadcast_process import RECEIVER, SENDER, BroadcastProcess, End
from vigor_client.weight_format.broadcast_worker import CHUNK_BYTES

LIMIT_SECONDS = 3.0
Tensors = dict[str, torch.Tensor]
WORKER = "broadcast_worke"  # as much as the kernel keeps of a name


@pytest.fixture(autouse=True, scope="module")
def _ends_are_preloaded() -> Iterator[None]:
    with preloaded_children():
        yield


@pytest.fixture
def real_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both ends load torch themselves: a kill then meets the process that it is meant for, and not its starter."""
    monkeypatch.delenv(SERVER_VARIABLE)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging"), allow_broadcast=True, max_upload_bytes=1 << 26) as running:
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


def publish(service: LiveService, tensors: Mapping[str, torch.Tensor], **how: Any) -> PublishResult:  # noqa: ANN401 - arguments of publish_weights
    with client(service) as to_service:
        version = to_service.weights().weight_version + 1
        return to_service.publish_weights(tensors, weight_version=version, **how)


def serves(service: LiveService, tensors: Tensors) -> bool:
    with client(service) as to_service:
        return digest_of_tensors(tensors, to_service.tensors()) == to_service.weights().weight_digest


def served(service: LiveService) -> dict[str, object]:
    """What `GET /v1/weights` answers, without the update that may be under way."""
    return {name: value for name, value in service.http.get("/v1/weights").json().items() if name != "update"}


@contextmanager
def nothing_changes(service: LiveService) -> Iterator[None]:
    """What is inside fails: the old weights serve on, nothing runs on, and publishing over HTTP works right after."""
    before, norms = served(service), service.norms()
    yield
    assert served(service) == before
    assert service.norms() == norms
    wait_until(lambda: not _pumps() and not _threads_that_wait())
    tensors = trained(service)
    assert publish(service, tensors).encoding == "full"
    assert serves(service, tensors)


def _pumps() -> list[Path]:
    """Processes of either end that this run of the tests, or a trainer of it, has started."""
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
            said = (process / "cmdline").read_text() + (process / "comm").read_text()
            if WORKER in said and (process / "cwd").samefile(Path.cwd()):
                found.append(process)
    return found


def _threads_that_wait() -> list[str]:
    """Where threads of this process wait for one of those."""
    frames = sys._current_frames().values()
    places = [line for frame in frames for line in traceback.format_stack(frame)]
    return [place for place in places if "broadcast_process.py" in place]


@contextmanager
def listener() -> Iterator[tuple[socket.socket, dict[str, Any]]]:
    """A socket that accepts and says nothing, and the request that sends a service there."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent, {"backend": "gloo", "host": "127.0.0.1", "port": silent.getsockname()[1]}


@contextmanager
def sender(num_bytes: int, timeout_seconds: float = 60.0) -> Iterator[tuple[BroadcastProcess, dict[str, Any]]]:
    """A trainer's end, to be fed by the test."""
    with listener() as (socket_, request):
        end = End(
            rank=SENDER,
            backend="gloo",
            host="127.0.0.1",
            port=request["port"],
            num_bytes=num_bytes,
            timeout_seconds=timeout_seconds,
            listener=socket_.fileno(),
        )
        process = BroadcastProcess(end)
    with closing(process):
        yield process, request


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


@pytest.mark.usefixtures("real_ends")
def test_a_broadcast_ends_with_the_trainers_weights(service: LiveService) -> None:
    tensors = trained(service)
    published = publish(service, tensors, transport=Broadcast())
    assert published.encoding == "full"
    assert published.sent_bytes > 0
    assert serves(service, tensors)
    torch.testing.assert_close(service.scorer.parameters, tensors, rtol=0, atol=0)


def test_changes_alone_are_broadcast_in_the_order_of_their_files(service: LiveService) -> None:
    snapshot = WeightSnapshot()
    publish(service, trained(service), snapshot=snapshot)
    tensors = trained(service, slice(0, 2))
    assert publish(service, tensors, snapshot=snapshot, transport=Broadcast()).encoding == "delta"
    assert serves(service, tensors)


async def test_the_async_client_broadcasts_likewise(service: LiveService) -> None:
    tensors = trained(service)

    async with AsyncVigorClient(str(service.http.base_url)) as to_service:
        await to_service.publish_weights(tensors, weight_version=7, transport=Broadcast())
    assert serves(service, tensors)


def test_files_that_came_over_http_are_not_broadcast_again(service: LiveService) -> None:
    first, second = b"came already", bytes(range(256)) * 100_000  # more than one chunk
    announced = [announce(first, name="a.safetensors"), announce(second, name="b.safetensors")]
    path = f"{UPDATES}/{open_update(service.http, *announced).json()['update_id']}"
    assert service.http.put(f"{path}/files/a.safetensors", content=first).status_code == 200
    with sender(len(second)) as (process, request), ThreadPoolExecutor(1) as threads:
        sending = threads.submit(process.send, [second])
        answer = service.http.post(f"{path}/broadcast", json=request)
        sending.result(20.0)
    assert answer.json()["received_files"] == ["a.safetensors", "b.safetensors"]
    assert service.http.post(f"{path}/broadcast", json=request).json() == answer.json()  # nothing is missing
    assert service.http.delete(path).status_code == 204


# ------------------------------------------------------------------------------------------ what is refused


def test_a_service_that_does_not_allow_it_names_the_setting(tmp_path: Path) -> None:
    with (
        live_service(tmp_path) as service,
        nothing_changes(service),
        pytest.raises(InvalidRequestError, match="--allow-broadcast"),
    ):
        publish(service, trained(service), transport=Broadcast())


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"backend": "mpi"}, "backend"),
        ({"backend": "nccl"}, "backend"),
    ],
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
    with pytest.raises(ValueError, match="give "):
        replace(Broadcast(), **wrong)


def test_an_address_of_another_machine_is_refused_where_the_trainer_is(service: LiveService) -> None:
    with nothing_changes(service), pytest.raises(BroadcastError, match=r"203\.0\.113\.1 port 0"):
        publish(service, trained(service), transport=Broadcast(host="203.0.113.1"))


def test_other_bytes_than_announced_are_refused_and_may_be_sent_again(service: LiveService) -> None:
    data = save(trained(service))
    path = opened(service, data)
    with sender(len(data)) as (process, request), ThreadPoolExecutor(1) as threads:
        threads.submit(process.send, [bytes(len(data))])
        status, code, message = refusal(service.http.post(f"{path}/broadcast", json=request))
    assert (status, code) == (422, "invalid_request")
    assert "checksum" in message
    assert FILE in message
    finish_over_http(service, path, data)


# -------------------------------------------------------------------------------------------- what is ended


def test_a_peer_that_says_nothing_ends_with_the_limit(impatient: LiveService) -> None:
    """It is accepted, and torch.distributed itself would wait without a limit."""
    path = opened(impatient, save(trained(impatient)))
    with nothing_changes(impatient), listener() as (_, request):
        status, code, message = refusal(impatient.http.post(f"{path}/broadcast", json=request))
        assert (status, code) == (504, "deadline_exceeded")
        assert FILE in message
        assert f"127.0.0.1 port {request['port']}" in message
        assert impatient.http.get(path).json()["missing_files"] == [FILE]
        assert impatient.http.delete(path).status_code == 204


def test_a_peer_that_is_not_there_ends_at_once(service: LiveService) -> None:
    data = save(trained(service))
    path = opened(service, data)
    with listener() as (_, request):
        pass
    status, code, message = refusal(service.http.post(f"{path}/broadcast", json=request))
    assert (status, code) == (422, "invalid_request")
    assert f"{FILE}" in message
    assert f"there is no sender at 127.0.0.1 port {request['port']}" in message
    finish_over_http(service, path, data)


def test_a_sender_to_whom_nobody_comes_ends_with_its_limit() -> None:
    data = bytes(CHUNK_BYTES)  # more than the pipe holds
    with sender(len(data), timeout_seconds=1.0) as (process, _):
        with pytest.raises(BroadcastError) as raised:
            process.send([data])
        assert process.fault() == str(raised.value)
        assert "timeout" in str(raised.value).lower()


def test_the_client_drops_an_update_that_the_service_gave_up(impatient: LiveService) -> None:
    """This trainer takes longer to read its tensors than the service waits."""

    def given_up() -> None:
        wait_until(lambda: len(_staged(impatient)) == 1)
        wait_until(lambda: not _staged(impatient))

    with nothing_changes(impatient), pytest.raises(DeadlineExceededError, match=r"model-00001-of-00001"):
        publish(impatient, ReadAgain(trained(impatient), given_up), transport=Broadcast())


class ReadAgain(dict[str, torch.Tensor]):
    """Tensors that do something once one is read for the second time, which is in the middle of a broadcast."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], again: Callable[[], None]) -> None:
        super().__init__(tensors)
        self._again = again
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._read:
            again, self._again = self._again, lambda: None
            again()
        self._read.add(name)
        return super().__getitem__(name)


def test_tensors_that_cannot_be_read_are_the_error_of_the_trainer(service: LiveService) -> None:
    def fail() -> None:
        raise RuntimeError("the disk is gone")

    with nothing_changes(service), pytest.raises(RuntimeError, match="the disk is gone"):
        publish(service, ReadAgain(trained(service), fail), transport=Broadcast())


TRAINER = """
import sys, torch
from vigor_client import Broadcast, VigorClient

class HalfWay(dict):
    read = set()
    def __getitem__(self, name):
        if name in self.read:
            print("half way", flush=True)
            sys.stdin.read()
        self.read.add(name)
        return super().__getitem__(name)

client = VigorClient(sys.argv[1])
tensors = HalfWay({info.name: torch.ones(info.shape) for info in client.tensors().tensors})
client.publish_weights(tensors, weight_version=50, transport=Broadcast())
"""


def test_a_broadcast_that_is_asked_for_again_gets_the_answer_of_the_first(service: LiveService) -> None:
    """As after an answer that was lost on its way: the first one goes on, and what is sent is sent once."""
    data = save(trained(service))
    path = opened(service, data)
    with sender(len(data)) as (process, request), ThreadPoolExecutor(2) as threads:
        first = threads.submit(service.http.post, f"{path}/broadcast", json=request)
        wait_until(lambda: len(_staged(service)) == 1)
        again = threads.submit(service.http.post, f"{path}/broadcast", json=request)
        process.send([data])
        answers = [answer.result(20.0) for answer in (first, again)]
    assert [answer.json()["received_files"] for answer in answers] == [[FILE], [FILE]]
    assert service.http.delete(path).status_code == 204


def test_a_publication_that_is_cancelled_does_not_block_the_loop_while_its_tensors_are_read(
    service: LiveService,
) -> None:
    is_reading, may_go_on, ended_by = threading.Event(), threading.Event(), list[str]()

    def stall() -> None:
        is_reading.set()
        assert may_go_on.wait(60.0)

    def end(by: str) -> None:
        ended_by.append(by)
        may_go_on.set()

    async def cancel_while_a_tensor_is_read() -> None:
        async with AsyncVigorClient(str(service.http.base_url)) as to_service:
            tensors = ReadAgain(trained(service), stall)
            publishing = asyncio.create_task(
                to_service.publish_weights(tensors, weight_version=7, transport=Broadcast())
            )
            await asyncio.to_thread(is_reading.wait, 60.0)
            publishing.cancel()
            asyncio.get_running_loop().call_later(0.1, end, "the loop")
            with pytest.raises(asyncio.CancelledError):
                await publishing

    backstop = threading.Timer(20.0, end, ["the clock"])
    with nothing_changes(service):
        backstop.start()
        asyncio.run(cancel_while_a_tensor_is_read())
        backstop.cancel()
    assert ended_by[0] == "the loop"


class Unending(End):
    """A process that closes its pipes at once and does not end."""

    @property
    def command(self) -> list[str]:
        program = (
            "import os, time; os.close(0); os.close(1); print('late', file=__import__('sys').stderr); time.sleep(600)"
        )
        return [sys.executable, "-c", program]


def test_a_process_that_closes_its_pipe_and_does_not_end_is_an_error_in_time() -> None:
    end = Unending(rank=RECEIVER, backend="gloo", host="127.0.0.1", port=9, num_bytes=1, timeout_seconds=1.0)
    with closing(BroadcastProcess(end, end_seconds=0.2)) as process:
        with pytest.raises(BroadcastError, match=r"did not end within 0\.2 s"):
            process.read(1)
        with pytest.raises(BroadcastError, match=r"did not end within 0\.2 s"):
            process.send([bytes(1 << 21)])


@pytest.mark.usefixtures("real_ends")
def test_a_trainer_that_is_killed_half_way_leaves_nothing_behind(service: LiveService) -> None:
    with nothing_changes(service):
        command = [sys.executable, "-c", TRAINER, str(service.http.base_url)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"half way\n"
            trainer.kill()
        wait_until(lambda: not _pumps())
        open_one = open_update(service.http, announce(b"x")).json()["update_id"]  # told of in a 409
        assert service.http.delete(f"{UPDATES}/{open_one}").status_code == 204


@pytest.mark.slow
@pytest.mark.usefixtures("real_ends")
def test_a_sender_that_is_killed_half_way_is_named_by_file_and_byte(service: LiveService) -> None:
    data, norms = bytes(range(256)) * 160_000, service.norms()
    path = opened(service, data)
    with sender(len(data)) as (process, request), ThreadPoolExecutor(1) as threads:

        def half() -> Iterator[bytes]:
            yield data[: len(data) // 2]
            wait_until(lambda: sum(_staged(service)) > 0)
            assert service.norms() == norms  # scores are answered meanwhile
            process.kill()
            yield data[len(data) // 2 :]

        sending = threads.submit(process.send, half())
        status, code, message = refusal(service.http.post(f"{path}/broadcast", json=request))
        assert isinstance(sending.exception(20.0), BroadcastError)
    assert (status, code) == (422, "invalid_request")
    assert f"stopped after {CHUNK_BYTES} of {len(data)} bytes: " in message
    assert service.http.get(path).json()["missing_files"] == [FILE]
    with nothing_changes(service):
        assert service.http.delete(path).status_code == 204


def _staged(service: LiveService) -> list[int]:
    """Bytes of each file that is on its way."""
    staging = service.runtime.settings.staging_dir
    assert staging is not None
    return [path.stat().st_size for path in staging.rglob("*.part")]


@pytest.mark.slow
@pytest.mark.usefixtures("real_ends")
def test_a_trainer_whose_service_is_killed_gets_an_error(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    tensors = {name: tensor + 0.5 for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    with (
        service_process(tmp_path, "--model", str(checkpoint), "--allow-broadcast") as service,
        VigorClient(str(service.http.base_url), max_retries=0) as to_service,
    ):
        published = to_service.publish_weights(tensors, weight_version=1, transport=Broadcast())
        assert to_service.weights().weight_digest == published.weight_digest
        changed = ReadAgain({name: tensor + 0.5 for name, tensor in tensors.items()}, service.process.kill)
        with pytest.raises(TransportError):
            to_service.publish_weights(changed, weight_version=2, transport=Broadcast())
    wait_until(lambda: not _pumps() and not _threads_that_wait())


# ---------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL refuses two ranks on one device: it needs two")
def test_nccl_brings_the_weights_from_one_device_to_another(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    tensors = {name: tensor.cuda(1) + 0.5 for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    arguments = ("--model", str(checkpoint), "--device", "cuda:0", "--allow-broadcast")
    with (
        torch.cuda.device(1),
        service_process(tmp_path, *arguments) as service,
        VigorClient(str(service.http.base_url)) as to_service,
    ):
        published = to_service.publish_weights(tensors, weight_version=1, transport=Broadcast(backend="nccl"))
        assert published.encoding == "full"
        assert to_service.weights().weight_digest == published.weight_digest
