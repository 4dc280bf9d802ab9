"""A proxy that cuts every connection after so many bytes from the client, as a limit on the way does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK_BYTES = 1024


@contextmanager
def cutting_proxy(target: tuple[str, int], num_bytes: int) -> Iterator[str]:
    """Pass connections on to the target until the block ends; yield the proxy's URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, target, num_bytes))
        accepting.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        accepting.join()


def _accept(listener: socket.socket, target: tuple[str, int], num_bytes: int) -> None:
    relays: list[threading.Thread] = []
    while True:
        try:
            downstream, _ = listener.accept()
        except OSError:
            break
        relays.append(threading.Thread(target=_relay, args=(downstream, target, num_bytes)))
        relays[-1].start()
    for relay in relays:
        relay.join()


def _relay(downstream: socket.socket, target: tuple[str, int], num_bytes: int) -> None:
    with downstream, socket.create_connection(target) as upstream:
        answering = threading.Thread(target=_copy, args=(upstream, downstream, None))
        answering.start()
        _copy(downstream, upstream, num_bytes)
        for end in (upstream, downstream):
            _shut(end)
        answering.join()


def _copy(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
    """Copy until the source ends, either side is cut, or the limit is reached."""
    left = limit
    try:
        while left is None or left > 0:
            data = source.recv(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not data:
                return
            sink.sendall(data)
            left = None if left is None else left - len(data)
    except OSError:
        return


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
