"""The body of a JSON request: bounded while it streams in, then parsed, every fault listed at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from vigor_client.schemas import FieldError
from vigor_client.wire_types import half_character_in_json
from vigor_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    InvalidRequestError,
    MalformedBodyError,
    PayloadTooLargeError,
    QueueFullError,
    UnsupportedMediaTypeError,
    invalid_request,
)
from vigor_service.request_record import current_record

MAX_BODIES_IN_FLIGHT = 16
"""All bodies that are being received and parsed hold at most so many times the limit of one."""

_MAX_COUNTED_ERRORS = 20_000  # listing more would cost more memory than the request itself
_MAX_NAME_CHARACTERS = 100
_MAX_SEARCHED_BYTES = 1 << 20  # json's own parser takes many times the memory of the body
_Model = TypeVar("_Model", bound=BaseModel)


class BodyReader:
    """Receives bodies, never more bytes than the limits."""

    def __init__(self, *, max_body_bytes: int, timeout_seconds: float) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_held_bytes = max_body_bytes * MAX_BODIES_IN_FLIGHT
        self._timeout_seconds = timeout_seconds
        self._held_bytes = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytearray]:
        """Yield the whole JSON body; it counts against the limit of all bodies until the block ends.

        Raises:
            UnsupportedMediaTypeError, PayloadTooLargeError, QueueFullError, DeadlineExceededError, ClientGoneError
        """
        _refuse_other_media(request)
        self._refuse_large(content_length(request) or 0)
        body = bytearray()
        try:
            await self._read(request, body)
            current_record().received = perf_counter()
            yield body
        finally:
            self._held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                async for chunk in stream(request):
                    self._hold(body, chunk)
        except TimeoutError as error:
            raise DeadlineExceededError(f"the body did not come within {self._timeout_seconds} seconds") from error

    def _hold(self, body: bytearray, chunk: bytes) -> None:
        self._refuse_large(len(body) + len(chunk))
        if self._held_bytes + len(chunk) > self._max_held_bytes:
            raise QueueFullError("too many large bodies at once; come back later", retry_after_seconds=1.0)
        body += chunk
        self._held_bytes += len(chunk)

    def _refuse_large(self, num_bytes: int) -> None:
        limit = self._max_body_bytes
        if num_bytes > limit:
            raise PayloadTooLargeError(f"the body is larger than {limit} bytes; send fewer groups at once", limit=limit)


async def stream(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

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


def parse_json(model: type[_Model], body: bytearray, *, consequence: str) -> _Model:
    """Return the body as the model.

    Raises:
        MalformedBodyError: it is not JSON.
        InvalidRequestError: lists every offending place, and what did not happen because of them.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, body, consequence) from error


def _refusal(error: ValidationError, body: bytearray, consequence: str) -> MalformedBodyError | InvalidRequestError:
    count = error.error_count()
    if count > _MAX_COUNTED_ERRORS:
        whole = FieldError(loc=[], msg=f"{count} places are wrong: this is another kind of body")
        return invalid_request([whole], consequence=consequence)
    places = [
        FieldError(loc=_short(item["loc"]), msg=item["msg"].removeprefix("Value error, "))
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    if count == 1 and error.errors(include_url=False)[0]["type"] == "json_invalid":
        if len(body) <= _MAX_SEARCHED_BYTES and (found := half_character_in_json(body)):
            return invalid_request([FieldError(loc=_short(found[0]), msg=found[1])], consequence=consequence)
        return MalformedBodyError(f"{places[0].msg}; {consequence}", errors=places)
    return invalid_request(places, consequence=consequence)


def _short(loc: Iterable[str | int]) -> list[str | int]:
    """A place may hold the caller's own names: those are cut."""
    return [part[:_MAX_NAME_CHARACTERS] if isinstance(part, str) else part for part in loc]


def _refuse_other_media(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(f"Content-Type is {media_type[:100]!r}, application/json is needed")
