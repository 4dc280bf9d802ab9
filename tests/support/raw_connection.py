"""A connection to a service without an HTTP library, which would mend or refuse what is sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx


@contextmanager
def connected(http: httpx.Client, *, seconds: float) -> Iterator[socket.socket]:
    """Connect to the service that this client asks; ``seconds`` is the limit of each operation."""
    url = http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=seconds) as connection:
        yield connection
