"""The body of a JSON request: its size is limited, it is parsed off the event loop, and its first faults are listed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from time import perf_counter
from typing import ParamSpec, TypeVar

from fastapi import Request
from pydantic import BaseModel, JsonValue, ValidationError
from starlette.requests import ClientDisconnect

from vigor_client.schemas.common import half_character_in_json
from vigor_client.schemas.fault_limit import MAX_NAMES, FaultLimit
from vigor_client.schemas.faults import Fault, faults_of
from vigor_client.schemas.problems import FieldError
from vigor_client.weight_format.digest import checksum
from vigor_service.errors import (
    MAX_LISTED_ERRORS,
    ClientGoneError,
    DeadlineExceededError,
    InvalidRequestError,
    MalformedBodyError,
    PayloadTooLargeError,
    QueueFullError,
    UnsupportedMediaTypeError,
    invalid_request,
)
from vigor_service.http.sliced_json import free_in_slices, parse_in_slices
from vigor_service.observability.request_record import current_record
from vigor_service.threads.worker import WorkerThread

MAX_VALUES = 1 << 22
"""Maximum number of values of one body, counted by its commas. Each costs memory of its own."""
MAX_CONTAINERS = 1 << 18
"""Maximum number of objects and arrays of one body, counted by its opening brackets."""

_INLINE_BYTES = 1 << 14  # smaller bodies are parsed faster than a thread can start
_MAX_NAME_CHARACTERS = 100
_MAX_SEARCHED_BYTES = 1 << 20  # Python's json needs many times the memory of the body
_BYTES_PER_VALUE, _BYTES_PER_OBJECT = 40, 512  # an int in a list; a model, or a string that becomes one
_Model = TypeVar("_Model", bound=BaseModel)
_P = ParamSpec("_P")
_R = TypeVar("_R")


class BodyReader:
    """Receives and parses bodies: each within ``max_body_bytes``, all of them within ``max_held_bytes``.

    While a body arrives, its bytes count. After that an upper bound of the memory of its parsed objects counts as well,
    until the request is answered.
    """

    def __init__(self, *, max_body_bytes: int, max_held_bytes: int, timeout_seconds: float) -> None:
        self.max_body_bytes = max_body_bytes
        self.timeout_seconds = timeout_seconds
        self._max_held_bytes = max_held_bytes
        self.held_bytes = 0
        """Bytes that the bodies of all requests in progress hold."""
        self._thread = WorkerThread("parse")

    def hold(self, num_bytes: int, *, already: int) -> None:
        """Count these bytes for a request that holds ``already`` bytes. A request that is alone is always admitted.

        Raises:
            QueueFullError: all requests together would hold too much.
        """
        others = self.held_bytes - already
        if others > 0 and self.held_bytes + num_bytes > self._max_held_bytes:
            raise QueueFullError(
                f"other requests hold {others >> 20} MiB of memory; retry later", retry_after_seconds=1.0
            )
        self.held_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Release these bytes."""
        self.held_bytes -= num_bytes

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run ``work`` on the thread that is reserved for parsing, and return its result."""
        return await self._thread.run(work, *args, **kwargs)

    def close(self) -> None:
        """Stop parsing."""
        self._thread.close()


class JsonBody:
    """The body of one request. Its memory stays counted until ``release`` is called."""

    def __init__(self, request: Request, reader: BodyReader) -> None:
        self._request = request
        self._reader = reader
        self._held_bytes = 0
        self.num_bytes = 0
        self.checksum = ""

    async def parse(self, model: type[_Model], *, consequence: str) -> _Model:
        """Receive the body, and return it as the model.

        Raises:
            UnsupportedMediaTypeError, PayloadTooLargeError, QueueFullError, DeadlineExceededError, ClientGoneError
            MalformedBodyError, InvalidRequestError: as ``parse_json``.
        """
        _refuse_other_media(self._request)
        self._refuse_large(content_length(self._request) or 0)
        text = await self._receive()
        current_record().received = perf_counter()
        self.num_bytes = len(text)
        if len(text) <= _INLINE_BYTES:
            self._hold(_extra_bytes(text))
            self.checksum = checksum(text)
            return parse_json(model, text, consequence=consequence)
        self._hold(await self._reader.run(_extra_bytes, text))
        self.checksum = await self._reader.run(checksum, text)
        return await self._reader.run(parse_json, model, text, consequence=consequence)

    def release(self) -> None:
        """Stop counting the memory of this body."""
        self._reader.release(self._held_bytes)
        self._held_bytes = 0

    async def _receive(self) -> bytes:
        body, seconds = bytearray(), self._reader.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                async for chunk in stream(self._request):
                    self._refuse_large(len(body) + len(chunk))
                    self._hold(len(chunk))
                    body += chunk
        except TimeoutError as error:
            raise DeadlineExceededError(f"the body did not arrive within {seconds} seconds") from error
        return bytes(body)

    def _hold(self, num_bytes: int) -> None:
        self._reader.hold(num_bytes, already=self._held_bytes)
        self._held_bytes += num_bytes

    def _refuse_large(self, num_bytes: int) -> None:
        limit = self._reader.max_body_bytes
        if num_bytes > limit:
            raise PayloadTooLargeError(f"the body is larger than {limit} bytes; send fewer groups at once", limit=limit)


async def stream(request: Request) -> AsyncIterator[bytes]:
    """Yield the chunks of the body.

    Raises:
        ClientGoneError: the connection ended before the body did.
    """
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ClientGoneError("the connection ended before the body did") from error


def content_length(request: Request) -> int | None:
    """Return the announced length of the body; the HTTP parser has checked that it is a number."""
    text = request.headers.get("content-length")
    return None if text is None else int(text)


def parse_json(model: type[_Model], text: bytes, *, consequence: str) -> _Model:
    """Return the JSON as the model. A refusal costs no more than parsing the text and finding its first faults.

    Raises:
        MalformedBodyError: the text is not JSON.
        InvalidRequestError: the text does not fit the model; the error lists the offending places and the
            ``consequence``.
    """
    limit = FaultLimit(MAX_LISTED_ERRORS)
    parsed = _objects(text, consequence)
    try:
        return model.model_validate(parsed, context=limit)  # keeps the parts that templates receive
    except ValidationError as error:
        refusal = _refusal(faults_of(error, model), limit, consequence)
    free_in_slices(parsed)
    raise refusal  # not `from error`, which would keep the parsed document


def _objects(text: bytes, consequence: str) -> JsonValue:
    try:
        parsed = parse_in_slices(text)
    except ValueError as error:
        raise _no_json(text, str(error), consequence) from error
    if isinstance(parsed, dict) and len(parsed) > MAX_NAMES:
        whole = FieldError(loc=[], msg=f"has {len(parsed)} names: no request has more than {MAX_NAMES}")
        raise invalid_request([whole], consequence=consequence)
    return parsed


def _no_json(text: bytes, message: str, consequence: str) -> MalformedBodyError | InvalidRequestError:
    if len(text) <= _MAX_SEARCHED_BYTES and (found := half_character_in_json(text)):
        return invalid_request([FieldError(loc=_short(found[0]), msg=found[1])], consequence=consequence)
    place = FieldError(loc=[], msg=f"Invalid JSON: {message}")
    return MalformedBodyError(f"{place.msg}; {consequence}", errors=[place])


def _refusal(faults: Iterable[Fault], limit: FaultLimit, consequence: str) -> InvalidRequestError:
    places = [FieldError(loc=_short(fault.loc), msg=fault.msg) for fault in faults]
    if limit.has_skipped:  # more faults than can be listed
        del places[MAX_LISTED_ERRORS:]
    return invalid_request(places, consequence=consequence, are_all=not limit.has_skipped)


def _extra_bytes(text: bytes) -> int:
    """Return an approximate upper bound of the memory that the parsed body takes, without its text.

    Raises:
        PayloadTooLargeError: the text has more values or containers than the limit.
    """
    num_values, num_containers = text.count(b","), text.count(b"[") + text.count(b"{")
    for count, limit, what in (
        (num_values, MAX_VALUES, "values"),
        (num_containers, MAX_CONTAINERS, "objects and arrays"),
    ):
        if count > limit:
            raise PayloadTooLargeError(f"the body has {count} {what}, the limit is {limit}; send fewer", limit=limit)
    return _BYTES_PER_VALUE * num_values + _BYTES_PER_OBJECT * (num_containers + text.count(b'"') // 2)


def _short(loc: Iterable[str | int]) -> list[str | int]:
    """Return the place with the caller's own names cut to a bounded length."""
    return [part[:_MAX_NAME_CHARACTERS] if isinstance(part, str) else part for part in loc]


def _refuse_other_media(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type is {media_type[:100]!r}: send application/json")
