"""What callers send that is no request as the service expects it, over real sockets."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from tests.support.live_service import LiveService, live_service
from tests.support.raw_connection import connected
from tests.support.waiting import wait_until
from vigor_client.schemas.problems import Problem
from vigor_service.http.protocol import HeadLimits

SECONDS = 20.0
LIMITS = HeadLimits()
BODY = json.dumps({"groups": [{"prompt_ids": [1, 2], "completions": [[3], [4]]}]}).encode()
JSON = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
SCORE = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"\r\n" + BODY
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging")) as running:
        yield running


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the server ends the connection."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def answer_to(service: LiveService, *parts: bytes, ends: bool = False) -> bytes:
    """Return what comes back for these bytes; ``ends`` closes the caller's half behind them."""
    with connected(service.http, seconds=SECONDS) as connection:
        for part in parts:
            connection.sendall(part)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        return rest_of(connection)


def problem_in(answer: bytes) -> Problem:
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = Problem.model_validate_json(body)
    assert head.startswith(b"HTTP/1.1 %d " % problem.status)
    assert b"application/problem+json" in head
    assert re.search(rb"x-request-id: [0-9a-f]{32}", head.lower())
    return problem


# ---------------------------------------------------------------------------------------------- too much


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"x" * LIMITS.max_header_bytes + b"\r\n",
        b"X: y\r\n" * (LIMITS.max_header_bytes // 6 + 1),
        b"X" * LIMITS.max_header_bytes + b": y\r\n",
    ],
)
def test_headers_above_the_limit_are_431(service: LiveService, headers: bytes) -> None:
    answer = answer_to(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")
    assert problem_in(answer).code == "headers_too_large"


def test_headers_up_to_the_limit_are_taken(service: LiveService) -> None:
    headers = {"X": "x" * (LIMITS.max_header_bytes - 1000)}
    assert service.http.get("/healthz", headers=headers).status_code == 200


def test_a_url_above_the_limit_is_414_and_one_up_to_it_is_looked_up(service: LiveService) -> None:
    answer = answer_to(service, b"GET /" + b"x" * LIMITS.max_url_bytes + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert problem_in(answer).code == "url_too_long"
    assert service.http.get("/" + "x" * (LIMITS.max_url_bytes - 1)).status_code == 404


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\nX",
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\nX",
    ],
    ids=["url", "value", "name", "trailer", "name of a trailer"],
)
def test_what_never_ends_costs_no_more_than_its_limit(service: LiveService, begin: bytes) -> None:
    began = process_time()
    with connected(service.http, seconds=SECONDS) as connection:
        connection.sendall(begin)
        try:
            for _ in range(1000):
                connection.sendall(b"x" * 32_768)
        except ConnectionError:  # it was ended with its bytes unread
            pass
        else:
            connection.shutdown(socket.SHUT_WR)
            assert b"HTTP/1.1 4" in rest_of(connection)
    assert process_time() - began < 1.0  # 32 MiB; it was quadratic


# ---------------------------------------------------------------------------------------------- no requests


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT [ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    ],
)
def test_what_cannot_be_read_is_answered_with_a_problem(service: LiveService, sent: bytes) -> None:
    problem = problem_in(answer_to(service, sent))
    assert (problem.status, problem.code) == (400, "invalid_request")


def test_answers_to_earlier_requests_come_before_the_connection_ends(service: LiveService) -> None:
    service.scorer.gate.clear()
    with connected(service.http, seconds=SECONDS) as connection:
        connection.sendall(SCORE)
        wait_until(service.scorer.is_scoring.is_set)
        connection.sendall(b"garbage\r\n\r\n")
        service.scorer.gate.set()
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


# ------------------------------------------------------------------------------------------ half of a connection


def test_a_caller_that_closes_its_half_gets_its_answer(service: LiveService) -> None:
    assert b"HTTP/1.1 200" in answer_to(service, GET, ends=True)
    assert answer_to(service, b"GET /healthz HTTP/1.0\r\n\r\n", ends=True).startswith(b"HTTP/1.1 200")
    assert b'"grad_norm"' in answer_to(service, SCORE, ends=True)
    assert answer_to(service, GET, GET, GET, ends=True).count(b"HTTP/1.1 200") == 3


def test_a_caller_that_closes_its_half_is_waited_for_as_long_as_any(service: LiveService) -> None:
    service.scorer.gate.clear()
    with connected(service.http, seconds=SECONDS) as connection:
        connection.sendall(SCORE)
        connection.shutdown(socket.SHUT_WR)
        wait_until(service.scorer.is_scoring.is_set)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        service.scorer.gate.set()
        assert rest_of(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_the_work_of_a_caller_that_is_gone_leaves_the_queue(service: LiveService, version: bytes) -> None:
    def queued() -> float | None:
        return service.runtime.metrics.registry.get_sample_value("vigor_queued_requests")

    service.scorer.gate.clear()
    with connected(service.http, seconds=SECONDS) as connection:
        connection.sendall(SCORE.replace(b"HTTP/1.1", version))
        wait_until(lambda: queued() == 1)
    wait_until(lambda: queued() == 0)
    service.scorer.gate.set()


def test_half_a_request_and_no_more_is_no_request(service: LiveService) -> None:
    assert answer_to(service, SCORE[:-5], ends=True) == b""


# ------------------------------------------------------------------------------------------------ other callers


def test_lines_come_to_a_caller_of_http_1_0_as_they_are(service: LiveService) -> None:
    asked = b"POST /v1/score HTTP/1.0\r\nAccept: application/x-ndjson\r\n" + JSON + b"\r\n" + BODY
    head, _, lines = answer_to(service, asked).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    group, last = [json.loads(line) for line in lines.splitlines()]
    assert (group["index"], last["model"]) == (0, "fake")


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/weights"])
def test_head_is_answered_as_get_without_its_body(service: LiveService, path: str) -> None:
    got, head = service.http.get(path), service.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    if path != "/metrics":
        assert head.headers["Content-Length"] == got.headers["Content-Length"]


def test_options_says_what_a_path_takes(service: LiveService) -> None:
    for path, allowed in (("/", "GET, HEAD, OPTIONS"), ("/v1/score", "OPTIONS, POST")):
        answer = service.http.options(path)
        assert (answer.status_code, answer.headers["Allow"]) == (204, allowed)
    assert service.http.options("/nowhere").status_code == 404
    assert answer_to(service, b"OPTIONS * HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 204")


def test_an_upgrade_that_is_offered_is_passed_by(service: LiveService) -> None:
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    assert service.http.get("/healthz", headers=upgrade).status_code == 200


# ---------------------------------------------------------------------------------------------- for which host

NAMES = ["localhost", "LOCALHOST:8000", "localhost.", "vigor.localhost", "127.0.0.1", "127.9.9.9:1", "[::1]:8000"]
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.5", "[2001:db8::1]", "", "8.8.8.8"]


def test_without_keys_only_names_of_this_machine_are_answered(service: LiveService) -> None:
    for host in NAMES:
        assert service.http.get("/v1/weights", headers={"Host": host}).status_code == 200, host
    for host in OTHERS:
        refused = service.http.post("/v1/weights/updates", json={}, headers={"Host": host})
        assert (refused.status_code, refused.json()["code"]) == (421, "wrong_host"), host
        assert service.http.get("/readyz", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize("settings", [{"publish_key": "k"}, {"allow_anonymous": True}])
def test_a_service_with_keys_or_for_everybody_is_reached_by_any_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    with live_service(tmp_path, **settings) as open_to_others:
        headers = {"Host": "vigor.example", "Authorization": "Bearer k"}
        assert open_to_others.http.get("/v1/weights", headers=headers).status_code == 200
