"""Whatever goes wrong while weights are published: what was committed last is served, byte for byte, or nothing is."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save

from tests.support.cutting_proxy import cutting_proxy
from tests.support.killed_service import STAGES
from tests.support.near_norms import NearNorms
from tests.support.pushing import FILE, UPDATES, announce, open_update
from tests.support.service_process import STOP_SECONDS, THE_SERVICE, ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client import TransportError, UpdateStateError, VigorClient, VigorError, WeightSnapshot, digest_of_tensors

Tensors = dict[str, torch.Tensor]
GROUP = {"prompt_ids": [1, 2, 3], "completions": [[4, 5], [6], [7, 8, 9]]}
NAME = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def tensors(checkpoint: Path) -> Tensors:
    return load_file(checkpoint / "model.safetensors")


@contextmanager
def durable(directory: Path, checkpoint: Path, *arguments: str, stage: str | None = None) -> Iterator[ServiceProcess]:
    python = THE_SERVICE if stage is None else ("-m", "tests.support.killed_service", stage)
    given = ("--model", str(checkpoint), "--state-dir", str(directory / "state"), *arguments)
    with service_process(directory, *given, python=python) as service:
        yield service


def trained(tensors: Tensors, version: int) -> Tensors:
    return {**tensors, NAME: tensors[NAME] + 0.25 * version * (torch.arange(len(tensors[NAME])) % 9 == 0)[:, None]}


def publish(
    service: ServiceProcess, tensors: Tensors, version: int, *, snapshot: WeightSnapshot | None = None
) -> tuple[str, list[float]]:
    """Publish; return the digest that is served now and what it scores."""
    with client(service) as to_service:
        to_service.publish_weights(trained(tensors, version), weight_version=version, snapshot=snapshot)
    return served(service)


def client(service: ServiceProcess) -> VigorClient:
    return VigorClient(str(service.http.base_url), timeout_seconds=30, max_retries=0)


def served(service: ServiceProcess) -> tuple[str, list[float]]:
    answer = service.http.post("/v1/score", json={"groups": [GROUP]})
    assert answer.status_code == 200, answer.text
    norms = NearNorms(completion["grad_norm"] for completion in answer.json()["groups"][0]["completions"])
    assert answer.json()["weight_digest"] == service.http.get("/v1/weights").json()["weight_digest"]
    return answer.json()["weight_digest"], norms


def begin(service: ServiceProcess, tensors: Tensors, version: int = 2) -> tuple[str, bytes]:
    """Open an update; return its path and the bytes of its file."""
    data = save(trained(tensors, version))
    opened = open_update(service.http, announce(data), version=version)
    assert opened.status_code == 201, opened.text
    return f"{UPDATES}/{opened.json()['update_id']}", data


# ---------------------------------------------------------------------------------------- kill -9 of the service


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_service_that_is_killed_in_a_commit_comes_back_with_the_old_or_the_new_weights(
    tmp_path: Path, checkpoint: Path, tensors: Tensors, stage: str
) -> None:
    snapshot = WeightSnapshot()
    with durable(tmp_path, checkpoint) as service:
        old = publish(service, tensors, 1, snapshot=snapshot)
    with durable(tmp_path, checkpoint, stage=stage) as service:
        assert served(service) == old
        with pytest.raises(TransportError):
            publish(service, tensors, 2, snapshot=snapshot)
        assert service.process.wait(STOP_SECONDS) == -9
    with durable(tmp_path, checkpoint) as service:
        digest, norms = served(service)
        if stage in ("verifying", "storing"):
            assert (digest, norms) == old
        new = publish(service, tensors, 2, snapshot=snapshot)
        assert new[0] != old[0]
        if stage in ("stored", "applying"):
            assert (digest, norms) == new


@pytest.mark.slow
def test_a_service_that_is_killed_while_it_receives_comes_back_with_the_old_weights(
    tmp_path: Path, checkpoint: Path, tensors: Tensors
) -> None:
    with durable(tmp_path, checkpoint) as service:
        old = publish(service, tensors, 1)
        path, data = begin(service, tensors)
        with _half_sent(service, path, data):
            wait_until(lambda: any((tmp_path / "state").rglob("*.part")))
            service.process.kill()
            service.process.wait(STOP_SECONDS)
    with durable(tmp_path, checkpoint) as service:
        assert served(service) == old
        assert not list((tmp_path / "state").rglob("*.part"))
        assert publish(service, tensors, 2) != old


@pytest.mark.slow
def test_a_service_that_is_killed_after_a_commit_comes_back_with_the_new_weights(
    tmp_path: Path, checkpoint: Path, tensors: Tensors
) -> None:
    with durable(tmp_path, checkpoint) as service:
        new = publish(service, tensors, 1)
        service.process.kill()
        service.process.wait(STOP_SECONDS)
    with durable(tmp_path, checkpoint) as service:
        assert served(service) == new
        assert new[0] == _digest(service, trained(tensors, 1))


@pytest.mark.slow
def test_without_a_state_directory_a_restart_refuses_to_score_for_what_was_published(
    tmp_path: Path, checkpoint: Path, tensors: Tensors
) -> None:
    with service_process(tmp_path, "--model", str(checkpoint)) as service:
        digest, _ = publish(service, tensors, 1)
    with service_process(tmp_path, "--model", str(checkpoint)) as service:
        body = {"groups": [GROUP], "weight_version": 1, "weight_digest": digest}
        refused = service.http.post("/v1/score", json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "weight_version_mismatch")


# --------------------------------------------------------------------------------------------- on the way


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[ServiceProcess]:
    with durable(tmp_path_factory.mktemp("service"), checkpoint, "--update-timeout-seconds", "1") as service:
        yield service


@pytest.fixture
def old(running: ServiceProcess, tensors: Tensors) -> tuple[str, list[float]]:
    return publish(running, tensors, 1)


def test_a_trainer_that_is_killed_leaves_nothing_behind(
    running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors
) -> None:
    path, data = begin(running, tensors)
    host, port = _address(running)
    program = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
        "s.sendall(sys.argv[3].encode() + b'abc'); print('sent', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", program, host, str(port), _head(path, data)]
    trainer = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b"sent\n"
    trainer.kill()
    trainer.communicate(timeout=STOP_SECONDS)
    _expects_the_end_of(running, path)
    assert served(running) == old
    assert publish(running, tensors, 2) != old


def test_an_upload_that_trickles_is_ended(
    running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors
) -> None:
    path, data = begin(running, tensors)
    stop = threading.Event()

    def trickle() -> Iterator[bytes]:
        for index in range(len(data)):
            yield data[index : index + 1]
            if stop.wait(0.05):
                return

    answer = running.http.put(f"{path}/files/{FILE}", content=trickle(), headers={"Content-Length": str(len(data))})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    stop.set()
    _expects_the_end_of(running, path)
    assert served(running) == old


@pytest.mark.parametrize("num_bytes", [100, 5_000, 40_000])
def test_a_proxy_that_cuts_the_connection_changes_nothing(
    running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors, num_bytes: int
) -> None:
    with (
        cutting_proxy(_address(running), num_bytes) as url,
        VigorClient(url, max_retries=0) as cut,
        pytest.raises(VigorError),
    ):
        cut.publish_weights(trained(tensors, 2), weight_version=2)
    wait_until(lambda: _no_update_is_open(running, tensors))
    assert served(running) == old


@pytest.mark.parametrize("change", ["truncated", "flipped"])
def test_a_file_that_is_not_what_was_announced_is_refused(
    running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors, change: str
) -> None:
    path, data = begin(running, tensors)
    sent = data[:-1] if change == "truncated" else data[:-1] + bytes([data[-1] ^ 1])
    answer = running.http.put(f"{path}/files/{FILE}", content=iter([sent]))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert running.http.post(f"{path}/commit").json()["code"] == "update_state"
    assert running.http.delete(path).status_code == 204
    assert served(running) == old


def test_a_wrong_base_is_refused(running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors) -> None:
    opened = open_update(running.http, announce(save(tensors)), version=3, base_version=77)
    assert (opened.status_code, opened.json()["code"]) == (409, "weight_base_mismatch")
    assert served(running) == old


def test_of_two_trainers_one_is_told_to_wait(
    running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors
) -> None:
    path, data = begin(running, tensors)
    second = open_update(running.http, announce(data), version=3)
    assert (second.status_code, second.json()["code"]) == (409, "update_state")
    assert running.http.put(f"{path}/files/{FILE}", content=data).status_code == 200
    assert running.http.post(f"{path}/commit").json()["weight_version"] == 2
    assert served(running) != old


def test_trainers_that_push_at_once_leave_the_weights_of_one(
    running: ServiceProcess, old: tuple[str, list[float]], tensors: Tensors
) -> None:
    def attempt(version: int) -> str | None:
        with client(running) as to_service:
            try:
                return to_service.publish_weights(trained(tensors, version), weight_version=version).weight_digest
            except UpdateStateError:
                return None

    with ThreadPoolExecutor(4) as pool:
        committed = {digest for digest in pool.map(attempt, range(2, 10)) if digest is not None}
    assert served(running)[0] in committed
    assert committed <= {_digest(running, trained(tensors, version)) for version in range(2, 10)}
    assert served(running) != old


# ------------------------------------------------------------------------------------------------ full disk


def test_a_full_disk_refuses_the_update_and_serves_the_old_weights(
    tmp_path: Path, checkpoint: Path, tensors: Tensors
) -> None:
    size = len(save(tensors))
    (tmp_path / "state").mkdir()
    python = _on_a_small_disk(tmp_path / "state", num_bytes=3 * size)
    given = ("--model", str(checkpoint), "--state-dir", str(tmp_path / "state"))
    with service_process(tmp_path, *given, python=python) as service:
        old = publish(service, tensors, 1)
        namespace = Path(f"/proc/{service.process.pid}/root") / (tmp_path / "state").relative_to("/")
        path, data = begin(service, tensors)
        (namespace / "ballast").write_bytes(bytes(size + size // 2))
        for refused in (
            service.http.put(f"{path}/files/{FILE}", content=data),
            service.http.delete(path) and open_update(service.http, announce(data), version=2),
        ):
            assert (refused.status_code, refused.json()["code"]) == (507, "staging_full"), refused.text
        assert served(service) == old
        (namespace / "ballast").unlink()
        assert publish(service, tensors, 2) != old


def _on_a_small_disk(directory: Path, *, num_bytes: int) -> tuple[str, ...]:
    """What the interpreter is called with to be the service with a disk of this size mounted at the directory."""
    enter = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], check=False, timeout=60).returncode:
        pytest.skip("no small disk can be mounted: unshare is missing or not allowed")
    return ("-c", _SMALL_DISK.format(directory=directory, num_bytes=num_bytes))


# As those commands do it: the process that is forked has its libraries loaded, and another program would not.
_SMALL_DISK = """
import ctypes, os
from pathlib import Path
from vigor_service.__main__ import main

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
assert libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {{user}} 1")
Path("/proc/self/gid_map").write_text(f"0 {{group}} 1")
assert libc.mount(b"tmpfs", b"{directory}", b"tmpfs", 0, b"size={num_bytes}") == 0, os.strerror(ctypes.get_errno())
main()
"""


# -------------------------------------------------------------------------------------------------- helpers


@contextmanager
def _half_sent(service: ServiceProcess, path: str, data: bytes) -> Iterator[None]:
    with socket.create_connection(_address(service)) as connection:
        connection.sendall(_head(path, data).encode() + data[: len(data) // 2])
        yield


def _head(path: str, data: bytes) -> str:
    return f"PUT {path}/files/{FILE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"


def _address(service: ServiceProcess) -> tuple[str, int]:
    url = httpx.URL(service.http.base_url)
    assert url.port is not None
    return url.host, url.port


def _digest(service: ServiceProcess, tensors: Tensors) -> str:
    with client(service) as to_service:
        return digest_of_tensors(tensors, to_service.tensors())


def _expects_the_end_of(service: ServiceProcess, path: str) -> None:
    wait_until(lambda: service.http.get(path).status_code == 404)
    staged = list(service.log.parent.joinpath("state", "staging").rglob("*.safetensors*"))
    assert not staged


def _no_update_is_open(service: ServiceProcess, tensors: Tensors) -> bool:
    opened = open_update(service.http, announce(save(tensors)), version=9)
    if opened.status_code != 201:
        return False
    return service.http.delete(f"{UPDATES}/{opened.json()['update_id']}").status_code == 204
