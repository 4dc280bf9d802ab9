"""Whole requests: a route, headers that may lie, and a body."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import strategies as st

from tests.fuzz.bodies import NAMES, UPDATE, VALID, bodies, seldom
from tests.fuzz.wire import RawRequest

_TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20).map(str.encode)
_VALUE = st.binary(max_size=200).filter(lambda value: not set(value) & {0, 10, 13})
_ODD_HEADERS = st.one_of(
    st.tuples(_TOKEN, _VALUE),
    st.sampled_from(
        [
            (b"Content-Length", b"-1"),
            (b"Content-Length", b"99999999999999999999"),
            (b"Content-Length", b"5, 6"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Transfer-Encoding", b"gzip"),
            (b"Content-Encoding", b"gzip"),
            (b"Content-Type", b"text/plain"),
            (b"Content-Type", b"application/json; charset=utf-16"),
            (b"Accept", b"application/x-ndjson"),
            (b"Expect", b"100-continue"),
            (b"Upgrade", b"websocket"),
            (b"Connection", b"close, upgrade"),
            (b"Host", b"elsewhere.example"),
            (b"Authorization", b"Bearer \xff"),
            (b"Authorization", b"Basic " + b"A" * 9000),
            (b"Idempotency-Key", b"x" * 5000),
            (b"Idempotency-Key", b"again"),
            (b"Range", b"bytes=0-0"),
            (b"X-Request-Id", b"\x7f" * 300),
            (b"X-Long", b"x" * 100_000),
            (b"traceparent", b"00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-01"),
        ]
    ),
)
_METHODS = st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"X" * 300])
# Bodies are where most can be wrong.
_ROUTES = [item for item in VALID.items() for _ in range(4 if item[0][0] == "POST" else 1)]


@st.composite
def requests(draw: st.DrawFn, key: str, update_id: str) -> RawRequest:
    """Draw a request; most have the key that opens all routes, some are about this update."""
    (method, path), valid = draw(st.sampled_from(_ROUTES))
    body = draw(bodies(valid)) if method != "GET" or draw(seldom(5)) else b""
    return RawRequest(
        method=draw(_METHODS) if draw(seldom(20)) else method.encode(),
        target=draw(_targets(path.replace(UPDATE, update_id))),
        headers=draw(_headers(key, body)),
        body=body,
        version=draw(st.sampled_from([b"1.1"] * 18 + [b"1.0", b"9.9"])),
    )


@st.composite
def _targets(draw: st.DrawFn, path: str) -> bytes:
    kind = draw(st.integers(0, 3)) if draw(seldom(8)) else None
    if kind == 0:
        return b"/" + quote(draw(NAMES)).encode()
    if kind == 1:
        return path.encode() + b"&" * ("?" in path) + b"?" * ("?" not in path) + quote(draw(NAMES)).encode()
    if kind == 2:
        return path.encode() + b"/" + quote(draw(NAMES), safe="").encode()
    if kind == 3:
        return draw(st.sampled_from([b"*", b"http://elsewhere.example/", b"/" * 5000, b"/%ff%00", b"//v1/score", b"x"]))
    return path.encode()


@st.composite
def _headers(draw: st.DrawFn, key: str, body: bytes) -> tuple[tuple[bytes, bytes], ...]:
    usual = [(b"Host", b"127.0.0.1"), (b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    usual += [(b"Authorization", b"Bearer " + key.encode())] if not draw(seldom(6)) else []
    kept = [header for header in usual if not draw(seldom(40))]
    odd = draw(st.lists(_ODD_HEADERS, max_size=3)) if draw(seldom(5)) else []
    many = [(b"X-%d" % index, b"") for index in range(draw(st.sampled_from([0] * 40 + [300])))]
    return tuple(kept + odd + many)
