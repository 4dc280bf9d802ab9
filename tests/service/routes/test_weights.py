import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from tests.support.fake_scorer import WAIT_SECONDS
from tests.support.live_service import LiveService, live_service
from tests.support.pushing import FILE, UPDATES, announce, open_update, push, push_bytes
from tests.support.waiting import wait_until
from vigor_client.schemas.weights import CommitResponse, UpdateStatus
from vigor_client.weight_format.digest import model_digest
from vigor_service.weights.verification.fingerprint import describe

Tensors = dict[str, torch.Tensor]
GROUP = {"prompt_ids": [1], "completions": [[2]]}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path) as running:
        yield running


def _new_tensors(service: LiveService, change: float = 1.0) -> Tensors:
    return {name: tensor + change for name, tensor in service.scorer.parameters.items()}


def _staged(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.parent.parent == tmp_path]


def _opened(service: LiveService, *data: bytes) -> str:
    files = [announce(item, name=f"{index}.safetensors") for index, item in enumerate(data)]
    answer = open_update(service.http, *files)
    assert answer.status_code == 201, answer.text
    return f"{UPDATES}/{answer.json()['update_id']}"


def test_a_full_update_is_served_under_its_version_and_digest(service: LiveService, tmp_path: Path) -> None:
    before, tensors = service.norms(), _new_tensors(service)
    committed = CommitResponse.model_validate(push(service.http, tensors, version=12).json())
    assert (committed.weight_version, committed.num_changed_tensors) == (12, 2)
    assert committed.weight_digest == model_digest(describe(name, tensor) for name, tensor in tensors.items())
    weights = service.http.get("/v1/weights").json()
    assert (weights["weight_version"], weights["weight_digest"]) == (12, committed.weight_digest)
    assert service.norms() != before
    assert _staged(tmp_path) == []


def test_an_update_goes_through_its_states(service: LiveService) -> None:
    parts = [save({name: tensor}) for name, tensor in _new_tensors(service).items()]
    path = _opened(service, *parts)

    def status() -> UpdateStatus:
        return UpdateStatus.model_validate(service.http.get(path).json())

    assert (status().state, status().missing_files) == ("receiving", ["0.safetensors", "1.safetensors"])
    sent = service.http.put(f"{path}/files/1.safetensors", content=parts[1])
    assert sent.json()["received_files"] == ["1.safetensors"]
    early = service.http.post(f"{path}/commit")
    assert (early.status_code, early.json()["code"]) == (409, "update_state")
    assert early.json()["missing_files"] == ["0.safetensors"]
    service.http.put(f"{path}/files/0.safetensors", content=parts[0])
    assert service.http.post(f"{path}/commit").status_code == 200
    assert status().state == "committed"


def test_committing_again_gives_the_same_answer(service: LiveService) -> None:
    data = save(_new_tensors(service))
    path = _opened(service, data)
    service.http.put(f"{path}/files/0.safetensors", content=data)
    first, second = (service.http.post(f"{path}/commit") for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert service.http.delete(path).json()["code"] == "update_state"
    assert service.http.put(f"{path}/files/0.safetensors", content=data).json()["code"] == "update_state"


def test_the_same_version_may_be_published_with_other_bytes(service: LiveService) -> None:
    digests = [push(service.http, _new_tensors(service), version=3).json()["weight_digest"] for _ in range(2)]
    assert digests[0] != digests[1]


def test_a_second_update_is_a_conflict_until_the_first_is_dropped(service: LiveService, tmp_path: Path) -> None:
    data = save(_new_tensors(service))
    path = _opened(service, data)
    service.http.put(f"{path}/files/0.safetensors", content=data)
    assert len(_staged(tmp_path)) == 1
    second = open_update(service.http, announce(data))
    assert (second.status_code, second.json()["code"]) == (409, "update_state")
    assert path.endswith(second.json()["update_id"])
    assert service.http.delete(path).status_code == 204
    assert _staged(tmp_path) == []
    assert service.http.get(path).status_code == 404
    assert open_update(service.http, announce(data)).status_code == 201


def test_an_update_from_another_base_is_a_conflict(service: LiveService) -> None:
    refused = open_update(service.http, announce(b"x"), version=2, base_version=1)
    assert (refused.status_code, refused.json()["code"]) == (409, "weight_base_mismatch")
    assert (refused.json()["have"], refused.json()["want"]) == (0, 1)
    assert open_update(service.http, announce(b"x"), version=2, base_version=0).status_code == 201


def test_a_refused_update_leaves_everything_as_it_was(service: LiveService, tmp_path: Path) -> None:
    norms, weights = service.norms(), service.http.get("/v1/weights").json()
    tensors = _new_tensors(service)
    tensors["norm.weight"][0] = float("nan")
    data = save({**tensors, "x": torch.zeros(1)})
    path = _opened(service, data)
    service.http.put(f"{path}/files/0.safetensors", content=data)
    refused, again = (service.http.post(f"{path}/commit") for _ in range(2))
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert refused.json() == again.json()
    assert {tuple(error["loc"]) for error in refused.json()["errors"]} == {
        ("files", "0.safetensors", "norm.weight"),
        ("files", "0.safetensors", "x"),
    }
    assert service.http.get(path).status_code == 404
    assert service.norms() == norms
    assert service.http.get("/v1/weights").json() == weights
    assert _staged(tmp_path) == []


def test_a_file_with_another_checksum_is_refused_and_may_be_sent_again(service: LiveService) -> None:
    data = save(_new_tensors(service))
    path = f"{_opened(service, data)}/files/0.safetensors"
    wrong = service.http.put(path, content=data[:-1] + bytes([data[-1] ^ 1]))
    assert (wrong.status_code, wrong.json()["errors"][0]["loc"]) == (422, ["files", "0.safetensors"])
    assert service.http.put(path, content=data).status_code == 200
    assert service.http.put(path, content=data).status_code == 200


@pytest.mark.parametrize("length", [-1, 1])
def test_another_length_than_announced_is_refused_before_the_bytes(service: LiveService, length: int) -> None:
    data = save(_new_tensors(service))
    path = f"{_opened(service, data)}/files/0.safetensors"
    announced = service.http.put(path, content=(data + b"x")[: len(data) + length])
    assert announced.status_code == 422
    assert "Content-Length" in announced.json()["errors"][0]["msg"]
    streamed = service.http.put(path, content=iter([(data + b"x")[: len(data) + length]]))
    assert streamed.status_code == 422


def test_a_file_that_was_not_announced_is_refused(service: LiveService) -> None:
    path = _opened(service, b"x")
    answer = service.http.put(f"{path}/files/other", content=b"x")
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["files", "other"])


def test_more_bytes_than_the_model_can_need_are_refused(service: LiveService) -> None:
    huge = {"name": FILE, "num_bytes": 10**15, "checksum": "xxh3-128:" + "0" * 32}
    answer = open_update(service.http, huge)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"weight_version": -1, "files": [announce(b"x")]}, ["weight_version"]),
        ({"weight_version": 10**400, "files": [announce(b"x")]}, ["weight_version"]),
        ({"weight_version": 1, "files": []}, ["files"]),
        ({"weight_version": 1, "encoding": "pickle", "files": [announce(b"x")]}, ["encoding"]),
        ({"weight_version": 1, "files": [announce(b"x", name="../x")]}, ["files", 0, "name"]),
        ({"weight_version": 1, "files": [{**announce(b"x"), "checksum": "md5:0"}]}, ["files", 0, "checksum"]),
        ({"weight_version": 1, "files": [announce(b"x")] * 2}, []),
    ],
)
def test_a_wrong_announcement_is_refused_by_place(
    service: LiveService, body: dict[str, object], place: list[str | int]
) -> None:
    answer = service.http.post(UPDATES, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["loc"] for error in answer.json()["errors"]] == [place]


def test_an_update_that_nobody_touches_expires_and_frees_the_disk(tmp_path: Path) -> None:
    with live_service(tmp_path, update_timeout_seconds=0.3) as service:
        data = save(_new_tensors(service))
        path = _opened(service, data)
        assert service.http.put(f"{path}/files/0.safetensors", content=data).status_code == 200
        wait_until(lambda: service.http.get(path).status_code == 404)
        wait_until(lambda: _staged(tmp_path) == [])
        assert push(service.http, _new_tensors(service)).status_code == 200


def test_an_upload_that_breaks_off_leaves_no_bytes_and_the_old_weights(service: LiveService, tmp_path: Path) -> None:
    norms, data = service.norms(), save(_new_tensors(service))
    path = _opened(service, data)

    def breaking() -> Iterator[bytes]:
        yield data[:100]
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        service.http.put(f"{path}/files/0.safetensors", content=breaking(), headers={"Content-Length": str(len(data))})
    wait_until(lambda: _staged(tmp_path) == [])
    assert service.http.get(path).json()["received_files"] == []
    assert service.norms() == norms
    assert service.http.put(f"{path}/files/0.safetensors", content=data).status_code == 200
    assert service.http.post(f"{path}/commit").status_code == 200
    assert service.norms() != norms


@contextmanager
def _half_sent(service: LiveService, path: str, data: bytes) -> Iterator[socket.socket]:
    """A connection with half of a file, that says no more: its sender may be dead without a sign."""
    url = service.http.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"PUT {path} HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[: len(data) // 2])
        yield connection


def _answer_to(connection: socket.socket) -> str:
    connection.settimeout(WAIT_SECONDS)
    return connection.recv(1 << 16).decode()


def test_the_newest_sender_of_a_file_wins(service: LiveService, tmp_path: Path) -> None:
    data = save(_new_tensors(service))
    path = f"{_opened(service, data)}/files/0.safetensors"
    with _half_sent(service, path, data) as dead:
        wait_until(lambda: len(_staged(tmp_path)) == 1)
        assert service.http.put(path, content=data).status_code == 200
        answer = _answer_to(dead)
        assert answer.startswith("HTTP/1.1 409 ")
        assert "from a newer request" in answer
    assert service.http.post(f"{path.partition('/files/')[0]}/commit").status_code == 200


def test_each_newer_sender_ends_the_one_before(service: LiveService, tmp_path: Path) -> None:
    data = save(_new_tensors(service))
    path = f"{_opened(service, data)}/files/0.safetensors"
    with ExitStack() as stack:
        senders = [stack.enter_context(_half_sent(service, path, data))]
        wait_until(lambda: len(_staged(tmp_path)) == 1)
        for _ in range(4):
            senders.append(stack.enter_context(_half_sent(service, path, data)))
            answer = _answer_to(senders[-2])
            assert answer.startswith("HTTP/1.1 409 ")
            assert "retry-after: 1\r\n" in answer.lower()
        assert service.http.put(path, content=data).status_code == 200
        assert service.http.post(f"{path.partition('/files/')[0]}/commit").status_code == 200


def test_what_comes_late_of_a_file_that_is_there_neither_undoes_it_nor_holds_up_the_commit(
    service: LiveService, tmp_path: Path
) -> None:
    data = save(_new_tensors(service))
    path = _opened(service, data)
    assert service.http.put(f"{path}/files/0.safetensors", content=data).status_code == 200
    with _half_sent(service, f"{path}/files/0.safetensors", data) as late:
        wait_until(lambda: len(_staged(tmp_path)) == 2)
        assert service.http.post(f"{path}/commit").status_code == 200
        assert _answer_to(late).startswith("HTTP/1.1 409 ")


def test_dropping_an_update_ends_its_uploads_at_once(service: LiveService, tmp_path: Path) -> None:
    data = save(_new_tensors(service))
    path = _opened(service, data)
    with _half_sent(service, f"{path}/files/0.safetensors", data) as sending:
        wait_until(lambda: len(_staged(tmp_path)) == 1)
        assert service.http.delete(path).status_code == 204
        assert _staged(tmp_path) == []
        assert _answer_to(sending).startswith("HTTP/1.1 404 ")


# ------------------------------------------------------------------------------- updates that their callers name


def _open_as(service: LiveService, name: str, data: bytes = b"x", *, version: int = 1) -> httpx.Response:
    body = {"weight_version": version, "files": [announce(data)]}
    return service.http.post(UPDATES, json=body, headers={"Idempotency-Key": name})


def test_an_update_that_is_opened_again_is_the_same_one(service: LiveService) -> None:
    data = save(_new_tensors(service))
    first, second = (_open_as(service, "step-1", data) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert first.json()["update_id"] == "step-1"
    service.http.put(f"{UPDATES}/step-1/files/{FILE}", content=data)
    assert _open_as(service, "step-1", data).json()["received_files"] == [FILE]
    service.http.post(f"{UPDATES}/step-1/commit")
    assert _open_as(service, "step-1", data).json()["state"] == "committed"
    assert service.http.get("/v1/weights").json()["weight_version"] == 1


def test_a_name_stands_for_one_update(service: LiveService) -> None:
    _open_as(service, "step-1")
    other = _open_as(service, "step-1", version=2)
    assert (other.status_code, other.json()["code"]) == (422, "invalid_request")
    assert other.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    another = _open_as(service, "step-2")
    assert (another.status_code, another.json()["update_id"]) == (409, "step-1")


def test_dropping_again_does_nothing_and_a_late_opening_does_not_bring_it_back(service: LiveService) -> None:
    _open_as(service, "step-1")
    assert [service.http.delete(f"{UPDATES}/step-1").status_code for _ in range(2)] == [204, 204]
    late = _open_as(service, "step-1")
    assert (late.status_code, late.json()["code"], late.json()["state"]) == (409, "update_state", "dropped")
    assert service.http.get(f"{UPDATES}/step-1").status_code == 404
    assert _open_as(service, "step-2").status_code == 201


def test_an_update_that_was_refused_is_not_opened_again(service: LiveService) -> None:
    _open_as(service, "step-1")
    service.http.put(f"{UPDATES}/step-1/files/{FILE}", content=b"x")
    assert service.http.post(f"{UPDATES}/step-1/commit").status_code == 422
    again = _open_as(service, "step-1")
    assert (again.status_code, again.json()["state"]) == (409, "refused")


def test_an_update_that_expired_may_be_opened_again(tmp_path: Path) -> None:
    with live_service(tmp_path, update_timeout_seconds=0.1) as service:
        _open_as(service, "step-1")
        wait_until(lambda: service.http.get(f"{UPDATES}/step-1").status_code == 404)
        assert _open_as(service, "step-1").status_code == 201


@pytest.mark.parametrize("name", ["", "../x", "a.b", "a b", "lock/", "n" * 129])
def test_what_is_no_name_is_refused_before_anything_is_opened(service: LiveService, name: str) -> None:
    refused = _open_as(service, name)
    assert (refused.status_code, refused.json()["errors"][0]["loc"]) == (422, ["header", "Idempotency-Key"])
    assert _open_as(service, "step-1").status_code == 201


def test_a_name_is_no_name_on_the_disk(service: LiveService, tmp_path: Path) -> None:
    assert _open_as(service, "lock").status_code == 201  # what the staging directory calls a file of its own
    assert not [path for path in tmp_path.rglob("lock") if path.is_dir()]


def test_a_swap_that_fails_poisons_until_a_full_update_lands(service: LiveService) -> None:
    norms = service.norms()
    service.scorer.fail_loading = RuntimeError("the device is gone")
    failed = push(service.http, _new_tensors(service))
    assert (failed.status_code, failed.json()["code"]) == (503, "weights_poisoned")
    assert service.http.get("/v1/weights").json()["state"] == "poisoned"
    assert service.score(groups=[GROUP]).json()["code"] == "weights_poisoned"
    ready = service.http.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "weights_poisoned")
    assert service.http.get("/healthz").status_code == 200
    service.scorer.fail_loading = None
    assert push(service.http, _new_tensors(service)).status_code == 200
    assert service.http.get("/readyz").status_code == 200
    assert service.norms() != norms


def test_scoring_goes_on_while_an_update_is_received_and_verified(service: LiveService) -> None:
    norms, data = service.norms(), save(_new_tensors(service))
    path = _opened(service, data)
    service.http.put(f"{path}/files/0.safetensors", content=data)
    assert service.norms() == norms
    service.scorer.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        scoring = pool.submit(service.norms)
        wait_until(service.scorer.is_scoring.is_set)
        committing = pool.submit(service.http.post, f"{path}/commit")
        wait_until(lambda: service.http.get(path).json()["state"] == "applying")
        repeated = pool.submit(service.http.post, f"{path}/commit")
        assert service.http.delete(path).json()["code"] == "update_state"
        service.scorer.gate.set()
        assert scoring.result(WAIT_SECONDS) == norms
        assert committing.result(WAIT_SECONDS).json() == repeated.result(WAIT_SECONDS).json()
    assert service.norms() != norms


def test_a_client_that_leaves_during_its_commit_does_not_stop_it(service: LiveService) -> None:
    norms, data = service.norms(), save(_new_tensors(service))
    path = _opened(service, data)
    service.http.put(f"{path}/files/0.safetensors", content=data)
    service.scorer.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(service.norms)
        wait_until(service.scorer.is_scoring.is_set)
        with pytest.raises(httpx.ReadTimeout):
            service.http.post(f"{path}/commit", timeout=0.2)
        service.scorer.gate.set()
        assert scoring.result(WAIT_SECONDS) == norms
    wait_until(lambda: service.http.get(path).json()["state"] == "committed")
    assert service.norms() != norms


def test_bytes_that_are_no_safetensors_are_refused_by_file(service: LiveService) -> None:
    refused = push_bytes(service.http, b"\x80\x04\x95pickle")
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"] == ["files", FILE]


def test_names_that_look_like_temporary_ones_are_files_like_any_other(service: LiveService, tmp_path: Path) -> None:
    tensors = _new_tensors(service)
    names = ["a", "a.part", "lock", "update.json", "a.part.part"]
    data = [save({name: tensor}) for name, tensor in tensors.items()]
    data += [save({"embed.weight": tensors["embed.weight"] + index}) for index in range(1, 4)]  # refused, when read
    files = dict(zip(names, data, strict=True))
    opened = open_update(service.http, *(announce(content, name=name) for name, content in files.items()))
    path = f"{UPDATES}/{opened.json()['update_id']}"
    with ThreadPoolExecutor(len(files)) as pool:
        sent = pool.map(lambda name: service.http.put(f"{path}/files/{name}", content=files[name]), names)
        assert [answer.status_code for answer in sent] == [200] * len(files)
    assert {file.name: file.read_bytes() for file in _staged(tmp_path)} == files
    assert service.http.post(f"{path}/commit").status_code == 422  # tensors that come twice, not a file that is gone


def test_the_parts_of_an_update_are_measured(service: LiveService) -> None:
    push(service.http, _new_tensors(service))
    for phase in ("receive", "verify", "swap"):
        count = ("vigor_weight_update_seconds_count", {"phase": phase})
        assert service.runtime.metrics.registry.get_sample_value(*count) == 1
    assert service.runtime.metrics.registry.get_sample_value("vigor_weight_version") == 1


def test_the_staging_directory_goes_with_the_service(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        data = save(_new_tensors(service))
        service.http.put(f"{_opened(service, data)}/files/0.safetensors", content=data)
        assert len(_staged(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
