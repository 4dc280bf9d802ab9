"""A request as bytes, and what comes back: no HTTP library stands between that would mend or refuse it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

DEADLINE_SECONDS = 20.0
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class RawRequest:
    """``method target HTTP/version``, headers as they are, and a body that need not be what they announce."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    version: bytes = b"1.1"

    def __bytes__(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.method, self.target, self.version)]
        lines += [b"%s: %s" % header for header in self.headers]
        return b"\r\n".join([*lines, b"", self.body])


def send(port: int, request: bytes) -> int | None:
    """Return the status of the answer; None: the connection was closed without one.

    Raises:
        TimeoutError: neither came within ``DEADLINE_SECONDS``.
    """
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)  # what is missing of a body never comes
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            # It answered before it had read everything, and closed the connection.
        return _status(_received(connection))


def _received(connection: socket.socket) -> bytes:
    received = b""
    try:
        while len(received) < _MOST_BYTES and (piece := connection.recv(65536)):
            received += piece
    except ConnectionResetError:
        pass  # it closed with bytes unread; what came before counts
    return received


def _status(received: bytes) -> int | None:
    """Return the status of the answer behind those that only announce one, such as 100."""
    head, _, rest = received.partition(b"\r\n\r\n")
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return None
    status = int(words[1])
    return _status(rest) if status < 200 else status
