"""Failures that only real sockets have: nobody listens yet, a body is cut, a server is silent or refuses early."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from vigor_client import AnswerTimeoutError, ConnectionLostError, InvalidRequestError, UnreachableError, VigorClient
from vigor_client.schemas.service import Health
from vigor_client.transport.connections import Connections
from vigor_client.transport.endpoints import Endpoints
from vigor_client.transport.exchange import Exchange
from vigor_client.transport.retry import RetryPolicy
from vigor_client.transport.wire import BlockingWire, Body, HttpCall, run_blocking

BODY = b'{"status":"ok"}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n" + BODY
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n" + BODY[:7]
DEADLINE_SECONDS = 20.0


class HeldOpen(bytes):
    """What is sent before the connection falls silent."""


SILENCE = HeldOpen(b"")


def serve(listener: socket.socket, answers: list[bytes], released: threading.Event) -> None:
    """Give each connection the next answer and hang up, or hold it open until the test is over."""
    for answer in answers:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(DEADLINE_SECONDS)
            read_head(connection)
            connection.sendall(answer)
            if isinstance(answer, HeldOpen):
                released.wait(DEADLINE_SECONDS)
            else:
                linger(connection)


def read_head(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(4096)
        assert received, "the client hung up before its request was complete"
        head += received


def linger(connection: socket.socket) -> None:
    """Take what is still coming, so that closing does not reset the connection under the answer."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(1 << 16):
        pass


@contextmanager
def server(*answers: bytes, listener: socket.socket | None = None) -> Iterator[str]:
    """A server on a free port that gives these answers; yields its URL."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    listener.listen()
    listener.settimeout(DEADLINE_SECONDS)
    released = threading.Event()
    thread = threading.Thread(target=serve, args=(listener, list(answers), released))
    thread.start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        released.set()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "some answers were never asked for"


class WireThatActsBeforeItWaits(BlockingWire):
    """Instead of sleeping before a retry, does something."""

    def __init__(self, http: httpx.Client, act: Callable[[], object]) -> None:
        super().__init__(Connections(lambda: http))
        self._act = act

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002 - the act takes the place of time
        self._act()


def test_a_refused_connection_is_tried_again_until_somebody_listens() -> None:
    waiting = socket.socket()
    waiting.bind(("127.0.0.1", 0))  # taken, but not listening: connections are refused
    url = f"http://127.0.0.1:{waiting.getsockname()[1]}"
    with ExitStack() as servers, httpx.Client(base_url=url) as http:
        wire = WireThatActsBeforeItWaits(http, lambda: servers.enter_context(server(GOOD, listener=waiting)))
        exchange = Exchange(wire, RetryPolicy(max_retries=1), random=lambda: 0.5)
        call = HttpCall(method="GET", path="/healthz", timeout_seconds=DEADLINE_SECONDS)
        assert run_blocking(exchange.fetch(call, Health)).status == "ok"


def test_nobody_listening_is_said_with_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with VigorClient(url, max_retries=0) as client, pytest.raises(UnreachableError, match=url):
            client.weights()


def test_an_answer_that_is_cut_off_is_asked_for_again() -> None:
    with server(CUT, GOOD) as url, httpx.Client(base_url=url) as http:
        wire = WireThatActsBeforeItWaits(http, lambda: None)
        exchange = Exchange(wire, RetryPolicy(max_retries=1), random=lambda: 0.5)
        call = HttpCall(method="GET", path="/healthz", timeout_seconds=DEADLINE_SECONDS)
        assert run_blocking(exchange.fetch(call, Health)).status == "ok"


def test_an_answer_that_stays_cut_off_is_a_lost_connection() -> None:
    with server(CUT) as url, VigorClient(url) as client, pytest.raises(ConnectionLostError, match="/readyz"):
        client.ready()


def test_a_silent_server_is_given_up_on_after_the_timeout() -> None:
    with (
        server(SILENCE) as url,
        VigorClient(url, timeout_seconds=0.2, max_retries=0) as client,
        pytest.raises(AnswerTimeoutError, match=r"no answer within 0.2 s: GET .*/v1/weights"),
    ):
        client.weights()


def test_a_refusal_in_the_middle_of_an_upload_is_read() -> None:
    problem = b'{"type":"x","title":"x","status":422,"code":"invalid_request","detail":"wrong checksum"}'
    refusal = b"HTTP/1.1 422 X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(problem), problem)
    num_chunks, chunk = 64, b"x" * (1 << 20)
    body = Body("application/octet-stream", num_chunks * len(chunk), lambda: iter([chunk] * num_chunks))
    with server(refusal) as url, httpx.Client(base_url=url) as http:
        exchange = Exchange(BlockingWire(Connections(lambda: http)), RetryPolicy(max_retries=0), random=lambda: 0.5)
        endpoints = Endpoints(exchange, timeout_seconds=DEADLINE_SECONDS)
        with pytest.raises(InvalidRequestError, match="wrong checksum"):
            run_blocking(endpoints.put_file("u1", "model.safetensors", body))


def test_an_upload_starts_again_from_its_first_byte() -> None:
    starts: list[int] = []

    def chunks() -> Iterator[bytes]:
        starts.append(1)
        yield b"x" * 10

    call = HttpCall(
        method="PUT",
        path="/f",
        timeout_seconds=DEADLINE_SECONDS,
        body=Body("application/octet-stream", 10, chunks),
    )
    with server(CUT, GOOD) as url, httpx.Client(base_url=url) as http:
        wire = WireThatActsBeforeItWaits(http, lambda: None)
        run_blocking(Exchange(wire, RetryPolicy(max_retries=1), random=lambda: 0.5).send(call))
    assert len(starts) == 2
