"""Whose connections they are: an answer is held to its request, and no pool outlives its process or its event loop."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.client.transport.test_sockets import DEADLINE_SECONDS
from vigor_client import AsyncVigorClient, MixedUpAnswerError, VigorClient, WeightsInfo
from vigor_client.transport.connections import AsyncConnections

WITHOUT_RETRIES, WITH_RETRIES = 0, 3
WEIGHTS = WeightsInfo(
    weight_version=3,
    weight_digest="xxh3-128:" + "0" * 32,
    state="ready",
    num_tensors=1,
    num_bytes=4,
    dtype="float32",
    published_at="2026-01-01T00:00:00Z",
)
NameAnswer = Callable[[list[str]], str | None]
"""From the ids of a connection's requests so far, the newest last, to the id that the next answer carries."""


def own(ids: list[str]) -> str | None:
    return ids[-1]


def one_behind(ids: list[str]) -> str | None:
    return "another-callers-request" if len(ids) == 1 else ids[-2]


def one_behind_at_first(num_bad: int) -> NameAnswer:
    """One answer behind on the first connections, right on the others."""
    seen: list[int] = []

    def name(ids: list[str]) -> str | None:
        if len(ids) == 1:
            seen.append(1)
        return one_behind(ids) if len(seen) <= num_bad else own(ids)

    return name


class NamingServer:
    """Answers ``GET /v1/weights`` on kept connections, each answer with the id that ``name`` chooses."""

    def __init__(self, listener: socket.socket, name: NameAnswer) -> None:
        self.num_requests: list[int] = []
        self._listener = listener
        self._name = name
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def num_connections(self) -> int:
        return len(self.num_requests)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_requests.append(0)
            connection.settimeout(DEADLINE_SECONDS)
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection, len(self.num_requests) - 1)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, position: int) -> None:
        ids: list[str] = []
        body = WEIGHTS.model_dump_json().encode()
        try:
            while head := read_request(connection):
                ids.append(next(text[14:].strip() for text in head if text.lower().startswith("x-request-id: ")))
                self.num_requests[position] += 1
                name = self._name(ids)
                named = "" if name is None else f"X-Request-Id: {name}\r\n"
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{named}\r\n".encode() + body)
        except OSError:
            return


def read_request(connection: socket.socket) -> list[str]:
    """Return the lines of a request without a body; none when the caller has left."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(4096)
        if not received:
            return []
        head += received
    return head.decode().split("\r\n")


@contextmanager
def naming_server(name: NameAnswer) -> Iterator[NamingServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = NamingServer(listener, name)
        try:
            yield server
        finally:
            server.close()


def test_a_connection_that_stays_one_answer_behind_is_an_error_each_time_and_never_used_again() -> None:
    with naming_server(one_behind) as server, VigorClient(server.url, max_retries=WITHOUT_RETRIES) as client:
        for number in (1, 2, 3):
            with pytest.raises(MixedUpAnswerError, match=r"X-Request-Id .* answered with another-callers"):
                client.weights()
            assert server.num_connections == number


def test_a_mixed_up_answer_is_asked_for_again_on_a_fresh_connection() -> None:
    with naming_server(one_behind_at_first(1)) as server, VigorClient(server.url, max_retries=WITH_RETRIES) as client:
        assert client.weights() == WEIGHTS
        assert client.weights() == WEIGHTS
        assert server.num_connections == 2


def test_the_async_client_asks_again_too() -> None:
    async def main(url: str) -> WeightsInfo:
        async with AsyncVigorClient(url, max_retries=WITH_RETRIES) as client:
            return await client.weights()

    with naming_server(one_behind_at_first(1)) as server:
        assert asyncio.run(main(server.url)) == WEIGHTS
        assert server.num_connections == 2


def test_an_answer_without_an_id_is_taken() -> None:
    with naming_server(lambda _: None) as server, VigorClient(server.url, max_retries=WITHOUT_RETRIES) as client:
        assert client.weights() == WEIGHTS


FORKING = """
import os, sys
from vigor_client import VigorClient

client = VigorClient(sys.argv[1], max_retries=0)
client.weights()
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        with client:
            for _ in range(20):
                client.weights()
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
client.weights()  # on the first connection, which the children neither used nor closed
client.close()
"""


def test_forked_processes_have_connections_of_their_own_and_leave_their_parents_alone() -> None:
    with naming_server(own) as server:
        subprocess.run([sys.executable, "-W", "error", "-c", FORKING, server.url], check=True, timeout=DEADLINE_SECONDS)
        assert sorted(server.num_requests) == [2, 20, 20]


def test_an_async_client_goes_on_in_another_event_loop() -> None:
    with naming_server(own) as server:
        client = AsyncVigorClient(server.url, max_retries=WITHOUT_RETRIES)
        for _ in range(2):
            assert asyncio.run(client.weights()) == WEIGHTS
        assert server.num_requests == [1, 1]


def test_loops_that_were_closed_without_their_generators_are_forgotten() -> None:
    opened: list[httpx.AsyncClient] = []

    def open_pool() -> httpx.AsyncClient:
        opened.append(httpx.AsyncClient())
        return opened[-1]

    connections = AsyncConnections(open_pool)
    for number in (1, 2, 3):
        loop = asyncio.new_event_loop()
        pools = [loop.run_until_complete(connections.pool()) for _ in range(2)]
        loop.close()
        assert pools == [opened[-1]] * 2
        assert len(opened) == number
    assert len(connections) == 1


def test_a_closed_client_says_so() -> None:
    client = VigorClient("http://127.0.0.1:9")
    client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.health()
