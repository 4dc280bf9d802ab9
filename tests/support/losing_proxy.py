"""An HTTP proxy that loses what a network loses: a request, half of it, an answer, half of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx

from vigor_client.transport.wire import REQUEST_ID_HEADER

TIMEOUT_SECONDS = 180.0


class Loss(Enum):
    """What is lost of one exchange; the client's connection is cut."""

    REQUEST = "the service gets nothing"
    HALF_OF_THE_REQUEST = "the service gets half, over a connection that stays open and says no more"
    ANSWER = "the service acts, and the client gets nothing"
    HALF_OF_THE_ANSWER = "the service acts, and the client gets half"


Lose = Callable[[str, str, Mapping[str, str]], Loss | None]
"""Of method, path and headers of a request, what is lost of its exchange."""


@dataclass
class FirstOfEach:
    """Loses the first attempt of every call."""

    loss: Loss
    calls: set[str] = field(default_factory=set)

    def __call__(self, method: str, path: str, headers: Mapping[str, str]) -> Loss | None:  # noqa: ARG002 - a Lose
        call = headers[REQUEST_ID_HEADER]
        is_first = call not in self.calls
        self.calls.add(call)
        return self.loss if is_first else None


@dataclass
class Proxy:
    """A running proxy: its URL, and the ``METHOD path`` of every request, in order."""

    target: tuple[str, int]
    lose: Lose
    url: str = ""
    requests: list[str] = field(default_factory=list)
    dead: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def losing_proxy(url: str, lose: Lose) -> Iterator[Proxy]:
    """Pass requests on to the service at this URL until the block ends; ``lose`` is asked about each, one at a time."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None
    assert port is not None
    proxy = Proxy((host, port), lose)

    class Handler(_Handler):
        relay_to = proxy

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            serving.join()
            for connection in proxy.dead:
                connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS
    relay_to: Proxy

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.relay_to.lock:
            loss = self.relay_to.lose(self.command, self.path, httpx.Headers(dict(self.headers.items())))
            self.relay_to.requests.append(f"{self.command} {self.path}")
        if loss is Loss.HALF_OF_THE_REQUEST:
            self._send_half(body)
        if loss in (Loss.REQUEST, Loss.HALF_OF_THE_REQUEST):
            self._cut()
            return
        with closing(HTTPConnection(*self.relay_to.target, timeout=TIMEOUT_SECONDS)) as upstream:
            upstream.request(self.command, self.path, body or None, dict(self.headers))
            response = upstream.getresponse()
            answer = response.read()
        if loss is Loss.ANSWER:
            self._cut()
            return
        self._answer(response, answer, len(answer) // 2 if loss is Loss.HALF_OF_THE_ANSWER else len(answer))
        if loss is Loss.HALF_OF_THE_ANSWER:
            self._cut()

    do_GET = do_POST = do_PUT = do_DELETE = _relay

    def _send_half(self, body: bytes) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        request = f"{self.command} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body
        connection = socket.create_connection(self.relay_to.target, TIMEOUT_SECONDS)
        connection.sendall(request[: len(request) - max(1, len(body) // 2)])
        self.relay_to.dead.append(connection)

    def _answer(self, response: HTTPResponse, body: bytes, num_bytes: int) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if response.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:num_bytes])

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
