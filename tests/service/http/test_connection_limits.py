"""Connections that keep the server waiting are ended, in a real server process, and disturb nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pytest

from tests.support.raw_connection import connected
from tests.support.service_process import ServiceProcess, service_process
from tests.support.waiting import wait_until

HEADER_SECONDS, BODY_SECONDS, STALLED_SECONDS, MAX_WAITING = 0.5, 1.0, 0.5, 4
SECONDS = 20.0
_PROGRAM = f"""
from pydantic_settings import CliApp
from vigor_service.http.connection_limits import ConnectionLimits
from vigor_service.observability.logs import configure_logging
from vigor_service.runtime import LoadedModel
from vigor_service.server import serve
from vigor_service.settings import Settings

def load():
    from tests.support.fake_scorer import FakeScorer
    return LoadedModel(FakeScorer(), None)

configure_logging("debug", "text")
limits = ConnectionLimits(
    header_seconds={HEADER_SECONDS},
    refused_body_seconds={BODY_SECONDS},
    stalled_answer_seconds={STALLED_SECONDS},
    max_waiting={MAX_WAITING},
)
serve(CliApp.run(Settings), load, limits=limits)
"""
GET = b"GET /healthz HTTP/1.1\r\nHost: service\r\n\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with service_process(tmp_path_factory.mktemp("service"), python=["-c", _PROGRAM]) as running:
        yield running


def ended_seconds(connection: socket.socket, *, trickling: bytes = b"", began: float | None = None) -> float:
    """Return how long it takes until the server ends the connection, to which bytes are sent one by one.

    It is counted from ``began``, a time of ``monotonic``; None: from now.
    """
    began, rest = began or monotonic(), iter(trickling)
    connection.settimeout(HEADER_SECONDS / 10)
    while monotonic() - began < SECONDS:
        try:
            if (byte := next(rest, None)) is not None:
                connection.sendall(bytes([byte]))
            if not connection.recv(65536):
                return monotonic() - began
        except TimeoutError:
            continue
        except OSError:  # reset, since the server had not read all
            return monotonic() - began
    raise AssertionError(f"not ended within {SECONDS} s")


def assert_answered(connection: socket.socket, request: bytes = GET, status: bytes = b"200") -> None:
    connection.sendall(request)
    answer = b""
    while not answer.endswith(b"}"):
        received = connection.recv(65536)
        assert received, answer
        answer += received
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_a_connection_that_sends_nothing_is_ended(service: ServiceProcess) -> None:
    began = monotonic()
    with connected(service.http, seconds=SECONDS) as silent:
        assert HEADER_SECONDS * 0.9 <= ended_seconds(silent, began=began) < HEADER_SECONDS + 5


def test_headers_that_trickle_are_given_up_and_healthy_requests_are_answered_meanwhile(service: ServiceProcess) -> None:
    began = monotonic()
    with connected(service.http, seconds=SECONDS) as trickling:
        assert service.http.get("/healthz").status_code == 200
        headers = b"GET /healthz HTTP/1.1\r\nHost: " + b"x" * 1000
        seconds = ended_seconds(trickling, trickling=headers, began=began)
        assert HEADER_SECONDS * 0.9 <= seconds < HEADER_SECONDS + 5
        assert service.http.get("/healthz").status_code == 200


def test_the_second_request_of_a_connection_has_no_longer_than_the_first(service: ServiceProcess) -> None:
    with connected(service.http, seconds=SECONDS) as connection:
        assert_answered(connection)
        assert ended_seconds(connection, trickling=GET[:-1] * 100) < HEADER_SECONDS + 5


def test_what_is_left_of_a_refused_body_is_not_read_for_ever(service: ServiceProcess) -> None:
    with connected(service.http, seconds=SECONDS) as connection:
        announced = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n"
        began = monotonic()
        assert_answered(connection, announced, b"415")
        assert BODY_SECONDS * 0.9 <= ended_seconds(connection, trickling=b"x" * 10_000, began=began) < BODY_SECONDS + 5


def test_a_refused_body_that_comes_to_its_end_leaves_the_connection_as_it_was(service: ServiceProcess) -> None:
    body = b"x" * 1_000_000
    with connected(service.http, seconds=SECONDS) as connection:
        assert_answered(
            connection, b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body), b"415"
        )
        connection.sendall(body)
        assert_answered(connection)


def test_an_idle_connection_is_kept_for_its_next_request_and_a_slow_body_too(service: ServiceProcess) -> None:
    body = b'{"groups":[{"prompt_ids":[1],"completions":[[2]]}]}'
    with connected(service.http, seconds=SECONDS) as idle, connected(service.http, seconds=SECONDS) as slow:
        assert_answered(idle)
        head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        with connected(service.http, seconds=SECONDS) as silent:  # both outlive it
            ended_seconds(silent)
        assert_answered(idle)
        assert_answered(slow, body)


def test_of_too_many_waiting_connections_the_oldest_is_ended(service: ServiceProcess) -> None:
    with ExitStack() as stack:
        oldest, *others = (stack.enter_context(connected(service.http, seconds=SECONDS)) for _ in range(MAX_WAITING))
        for connection in (oldest, *others):
            assert_answered(connection)  # from here on they wait, and not for headers
        newest = stack.enter_context(connected(service.http, seconds=SECONDS))
        assert ended_seconds(oldest) < 4 * HEADER_SECONDS  # at once, whatever else the machine does
        for connection in (*others, newest):
            assert_answered(connection)


def test_an_answer_that_nobody_takes_is_given_up(service: ServiceProcess) -> None:
    def ended() -> int:
        return service.log.read_text().count("reason=answer_not_taken")

    before = ended()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SECONDS)
        connection.connect((service.http.base_url.host, service.http.base_url.port or 80))
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request * 500)  # pipelined: answers of more bytes than the buffers of both ends hold
        wait_until(lambda: ended() > before)
