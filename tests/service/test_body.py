import asyncio
from collections.abc import Iterable

import pytest
from fastapi import Request
from starlette.types import Message

from vigor_client.schemas import ScoreRequest
from vigor_service.body import MAX_BODIES_IN_FLIGHT, BodyReader, parse_json
from vigor_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    InvalidRequestError,
    MalformedBodyError,
    PayloadTooLargeError,
    QueueFullError,
    UnsupportedMediaTypeError,
)

LIMIT = 100


def _request(*chunks: bytes, media_type: str = "application/json", ends: str = "complete") -> Request:
    """A request whose body comes in chunks, and then is complete, goes silent, or loses its connection."""
    last: Iterable[Message] = {
        "complete": [{"type": "http.request", "body": b"", "more_body": False}],
        "disconnected": [{"type": "http.disconnect"}],
        "silent": [],
    }[ends]
    messages = [*({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks), *last]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return Request({"type": "http", "headers": [(b"content-type", media_type.encode())]}, receive)


def _reader(*, timeout_seconds: float = 20.0) -> BodyReader:
    return BodyReader(max_body_bytes=LIMIT, timeout_seconds=timeout_seconds)


def _receive(request: Request, reader: BodyReader | None = None) -> bytes:
    async def run() -> bytes:
        async with (reader or _reader()).receive(request) as body:
            return bytes(body)

    return asyncio.run(run())


@pytest.mark.parametrize("media_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_a_body_is_received_whole(media_type: str) -> None:
    assert _receive(_request(b"ab", b"c", media_type=media_type)) == b"abc"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (_request(b"x", media_type="text/plain"), UnsupportedMediaTypeError),
        (_request(b"x" * 60, b"x" * 41), PayloadTooLargeError),
        (_request(b"x", ends="disconnected"), ClientGoneError),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused(request_: Request, error: type[Exception]) -> None:
    with pytest.raises(error):
        _receive(request_)


def test_a_body_that_does_not_come_is_given_up() -> None:
    with pytest.raises(DeadlineExceededError):
        _receive(_request(b"x", ends="silent"), _reader(timeout_seconds=0.01))


def test_all_bodies_together_are_bounded_and_give_their_place_back() -> None:
    async def run() -> None:
        reader, release = _reader(), asyncio.Event()

        async def hold() -> None:
            async with reader.receive(_request(b"x" * LIMIT)):
                await release.wait()

        holding = [asyncio.ensure_future(hold()) for _ in range(MAX_BODIES_IN_FLIGHT)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError) as refused:
            async with reader.receive(_request(b"x")):
                pass
        assert refused.value.retry_after_seconds
        release.set()
        await asyncio.gather(*holding)
        async with reader.receive(_request(b"x")) as body:
            assert body == b"x"

    asyncio.run(run())


def test_an_error_while_the_body_is_used_goes_through_as_it_is() -> None:
    async def run() -> None:
        async with _reader().receive(_request(b"x")):
            raise TimeoutError("of somebody else")

    with pytest.raises(TimeoutError, match="somebody else"):
        asyncio.run(run())


def test_what_is_no_json_is_malformed_and_what_is_wrong_is_invalid() -> None:
    with pytest.raises(MalformedBodyError, match="Invalid JSON"):
        parse_json(ScoreRequest, bytearray(b"{"), consequence="nothing was scored")
    with pytest.raises(InvalidRequestError, match="2 places are wrong; nothing was scored") as refused:
        parse_json(ScoreRequest, bytearray(b'{"ties": 1}'), consequence="nothing was scored")
    assert sorted(error.loc for error in refused.value.errors) == [["groups"], ["ties"]]


def test_a_body_with_more_faults_than_can_be_listed_is_refused_as_a_whole() -> None:
    fields = ",".join(f'"x{index}": 1' for index in range(30_000))
    with pytest.raises(InvalidRequestError) as refused:
        parse_json(ScoreRequest, bytearray(f"{{{fields}}}".encode()), consequence="nothing was scored")
    (whole,) = refused.value.errors
    assert (whole.loc, whole.msg) == ([], "30001 places are wrong: this is another kind of body")


def test_a_place_named_by_the_caller_is_cut() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        parse_json(ScoreRequest, bytearray(b'{"groups": [], "' + b"x" * 10_000 + b'": 1}'), consequence="no")
    assert max(len(str(error.loc)) for error in refused.value.errors) < 200
