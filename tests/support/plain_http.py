"""An HTTP client for services of this machine."""

from __future__ import annotations

import ssl

import httpx

_TRUSTS_NO_SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # all certificates of the system take 30 ms to load


def http_client(url: httpx.URL | str, *, timeout_seconds: float = 30) -> httpx.Client:
    """Return a client that speaks plain HTTP alone."""
    return httpx.Client(base_url=url, timeout=timeout_seconds, verify=_TRUSTS_NO_SERVER)
