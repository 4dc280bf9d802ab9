"""What hostile or broken callers send: refused with the documented code, before it costs anything."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_service import LiveService, live_service
from vigor_client.schemas.problems import Problem

TEN_GIGABYTES = 10**10
CHECKSUM = "xxh3-128:" + "0" * 32
SECONDS = 10.0
JSON_PATHS = (
    "/v1/score",
    "/v1/score/sample",
    "/openrlhf/get_reward?group_size=2",
    "/slime/reward?group_size=2",
    "/v1/weights/updates",
    "/v1/weights/updates/none/take",
    "/v1/weights/updates/none/broadcast",
)
"""Calls that take JSON and refuse it with a problem."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service with a weights root that holds a circle of links and a link that leads out."""
    root = tmp_path_factory.mktemp("root")
    (root / "circle").symlink_to(root / "circle")
    (root / "out").symlink_to("/")
    with live_service(tmp_path_factory.mktemp("staging"), weights_root=root) as running:
        yield running


@pytest.fixture
def update_id(service: LiveService) -> Iterator[str]:
    """An open update of one file with five bytes."""
    answer = service.http.post("/v1/weights/updates", json=announcing("model.safetensors", 5))
    assert answer.status_code == 201, answer.text
    yield answer.json()["update_id"]
    service.http.delete(f"/v1/weights/updates/{answer.json()['update_id']}")


def announcing(name: str, num_bytes: int) -> dict[str, object]:
    file = {"name": name, "num_bytes": num_bytes, "checksum": CHECKSUM}
    return {"weight_version": 1, "encoding": "full", "files": [file]}


def refusal(service: LiveService, method: str, path: str, body: str) -> tuple[int, str]:
    """Send JSON as it is written; the answer must be a problem."""
    headers = {"Content-Type": "application/json"}
    answer = service.http.request(method, path, content=body.encode(), headers=headers)
    problem = Problem.model_validate(answer.json())
    assert problem.status == answer.status_code
    return problem.status, problem.code


# ---------------------------------------------------------------------------------------------- too many bytes


def answer_to_headers(service: LiveService, request_line: str, *headers: str) -> tuple[int, str]:
    """Announce ten gigabytes and send none of them; return status and code of what comes back first."""
    url = service.http.base_url
    announced = f"Content-Length: {TEN_GIGABYTES}"
    lines = [f"{request_line} HTTP/1.1", f"Host: {url.host}", announced, "Expect: 100-continue", *headers, "", ""]
    with socket.create_connection((url.host, url.port or 80), timeout=SECONDS) as connection:
        connection.sendall("\r\n".join(lines).encode())
        received = b""
        while not (found := re.match(rb"HTTP/1\.1 (\d+).*\"code\":\"(\w+)\"", received, re.DOTALL)):
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
    return int(found[1]), found[2].decode()


def test_ten_gigabytes_are_refused_before_any_of_them_is_asked_for(service: LiveService, update_id: str) -> None:
    json, update = "Content-Type: application/json", f"/v1/weights/updates/{update_id}"
    for path in JSON_PATHS:
        assert answer_to_headers(service, f"POST {path}", json) == (413, "payload_too_large")
    assert answer_to_headers(service, "POST /v1/score") == (415, "unsupported_media_type")
    assert answer_to_headers(service, "PUT /v1/weights/updates/none/files/f") == (404, "not_found")
    # The file was announced with five bytes: any other length is wrong.
    assert answer_to_headers(service, f"PUT {update}/files/model.safetensors") == (422, "invalid_request")
    body = announcing("model.safetensors", TEN_GIGABYTES)
    service.http.delete(update)
    assert service.http.post("/v1/weights/updates", json=body).json()["code"] == "payload_too_large"


def test_who_has_no_key_hears_that_first(tmp_path: Path) -> None:
    with live_service(tmp_path, publish_key="p", score_key="s") as guarded:
        json, of_scorers = "Content-Type: application/json", "Authorization: Bearer s"
        put = "PUT /v1/weights/updates/none/files/f"
        assert answer_to_headers(guarded, "POST /v1/score", json) == (401, "unauthenticated")
        assert answer_to_headers(guarded, put) == (401, "unauthenticated")
        assert answer_to_headers(guarded, put, of_scorers) == (403, "forbidden")
        assert answer_to_headers(guarded, "POST /v1/score", json, of_scorers) == (413, "payload_too_large")


# ------------------------------------------------------------------------------------------------- odd JSON

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        "[" * DEEP,
        '{"groups":' * DEEP,
        '{"groups":' + "[" * DEEP + "]" * DEEP + "}",
        '{"groups":[],"weight_version":' + "9" * 5000 + "}",
        "",
    ],
)
def test_what_no_parser_should_follow_is_400(service: LiveService, body: str) -> None:
    for path in JSON_PATHS:
        assert refusal(service, "POST", path, body) == (400, "invalid_request")


def test_half_of_a_surrogate_pair_is_named_by_its_place(service: LiveService) -> None:
    body = r'{"groups":[{"prompt":"a","completions":["b",{"text":"nice \ud83d"}]}]}'
    for path in JSON_PATHS:
        assert refusal(service, "POST", path, body) == (422, "invalid_request")
    answer = service.http.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    (place,) = answer.json()["errors"]
    assert place["loc"] == ["groups", 0, "completions", 1, "text"]
    assert place["msg"].startswith(r"character 5 is half of a surrogate pair (\ud83d)")


SAMPLE = '{"group":"g","group_size":?,"index":0,"prompt_ids":[1],"completion":[2]}'
IDS = '{"groups":[{"prompt_ids":[?],"completions":[[2]]}]}'
MASK = '{"groups":[{"prompt_ids":[1],"completions":[{"ids":[2],"mask":[?]}]}]}'
VERSION = '{"groups":[{"prompt_ids":[1],"completions":[[2]]}],"weight_version":?}'
SECONDS_TO_WAIT = '{"groups":[{"prompt_ids":[1],"completions":[[2]]}],"wait_seconds":?}'
NUM_BYTES = '{"weight_version":1,"encoding":"full","files":[{"name":"f","num_bytes":?,"checksum":"' + CHECKSUM + '"}]}'
HUGE = "1" + "0" * 300


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", HUGE, "[]", "null", '"1"'])
def test_a_number_that_is_none_or_not_in_range_is_422(service: LiveService, number: str) -> None:
    for body in (IDS, MASK, SECONDS_TO_WAIT):
        assert refusal(service, "POST", "/v1/score", body.replace("?", number)) == (422, "invalid_request"), body
    for body in (SAMPLE, SAMPLE.replace("?", "2").replace('"index":0', '"index":?')):
        assert refusal(service, "POST", "/v1/score/sample", body.replace("?", number)) == (422, "invalid_request"), body
    if number != "null":  # no version is asked for
        assert refusal(service, "POST", "/v1/score", VERSION.replace("?", number)) == (422, "invalid_request")
    refused = refusal(service, "POST", "/v1/weights/updates", NUM_BYTES.replace("?", number))
    assert refused == ((413, "payload_too_large") if number == HUGE else (422, "invalid_request"))


# ---------------------------------------------------------------------------------------- paths that lead out

OUTSIDE = ["../", "..", "/", "/etc", "a/../../x", "out", "out/etc", "circle", "\\u0000", "x" * 4000, "~", "../" * 300]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_directory_outside_of_the_root_is_refused(service: LiveService, update_id: str, path: str) -> None:
    take = f"/v1/weights/updates/{update_id}/take"
    assert refusal(service, "POST", take, f'{{"directory":"{path}"}}') == (422, "invalid_request")
    for call, field, version in (
        ("/update_weights_from_disk", "model_path", "weight_version"),
        ("/pull_weights", "source_dir", "target_version"),
    ):
        body = f'{{"{field}":"{path}","{version}":"1"}}'
        answer = service.http.post(call, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["success"]) == (400, False)
        assert "is not a directory under the service's --weights-root" in answer.json()["message"]


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "/x", "x\\u0000", "x\\n", "é"])
def test_a_file_name_that_leads_elsewhere_is_refused(service: LiveService, name: str) -> None:
    file = f'{{"name":"{name}","num_bytes":5,"checksum":"{CHECKSUM}"}}'
    body = f'{{"weight_version":1,"encoding":"full","files":[{file}]}}'
    assert refusal(service, "POST", "/v1/weights/updates", body) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("%2e%2e%2fx", (404, "not_found")),  # a slash is a slash, escaped or not: no such path
        ("..%2fx", (404, "not_found")),
        ("%2e%2e", (422, "invalid_request")),
        ("%00", (422, "invalid_request")),
        ("model.safetensors%0a", (422, "invalid_request")),
        ("%ff", (422, "invalid_request")),
        ("x" * 9000, (414, "url_too_long")),
    ],
)
def test_a_file_name_in_the_path_that_was_not_announced_is_refused(
    service: LiveService, update_id: str, name: str, refused: tuple[int, str]
) -> None:
    url = f"{service.http.base_url}/v1/weights/updates/{update_id}/files/{name}"
    answer = service.http.put(url, content=b"12345")
    assert (answer.status_code, answer.json()["code"]) == refused


def test_a_bug_ends_its_connection_and_says_so(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        service.runtime.serving.scoring.preparation.close()  # whatever comes now is a bug
        group = {"prompt": "a", "completions": ["b"]}
        for _ in range(3):  # a connection that is closed unsaid would break the next request of the pool
            answer = service.score(groups=[group])
            assert (answer.status_code, answer.headers["Connection"]) == (500, "close")
