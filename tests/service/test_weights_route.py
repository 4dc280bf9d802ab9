import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from tests.fake_scorer import WAIT_SECONDS
from tests.live_service import LiveService, live_service
from tests.pushing import FILE, UPDATES, announce, open_update, push, push_bytes
from tests.waiting import wait_until
from vigor_client.digest import model_digest
from vigor_client.schemas import CommitResponse, UpdateStatus
from vigor_service.weights.fingerprint import describe

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


def test_a_file_cannot_be_sent_twice_at_once_and_dropping_ends_the_upload(service: LiveService) -> None:
    data, begun, gate = save(_new_tensors(service)), threading.Event(), threading.Event()
    path = _opened(service, data)

    def held() -> Iterator[bytes]:
        yield data[:100]
        begun.set()
        assert gate.wait(WAIT_SECONDS)
        yield data[100:]

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(service.http.put, f"{path}/files/0.safetensors", content=held())
        assert begun.wait(WAIT_SECONDS)  # or the other may come first, and be the one that is taken
        wait_until(lambda: service.http.put(f"{path}/files/0.safetensors", content=data).status_code == 409)
        assert service.http.delete(path).status_code == 204
        gate.set()
        assert sending.result(WAIT_SECONDS).status_code == 404


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
