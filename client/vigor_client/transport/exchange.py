"""One call from request to checked answer: sends, retries as the policy says, and turns failures into typed errors.

Knows nothing about single endpoints.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar, cast

import httpx
import pydantic

from vigor_client.errors import (
    PROBLEM_ERRORS,
    AnswerTimeoutError,
    ConnectionLostError,
    MixedUpAnswerError,
    ProblemError,
    TransportError,
    UnexpectedAnswerError,
    UnreachableError,
    VigorError,
)
from vigor_client.schemas.common import WireModel
from vigor_client.schemas.problems import Problem
from vigor_client.transport.network import is_this_machine
from vigor_client.transport.retry import Failure, RetryPolicy, parse_date, parse_retry_after, refusal
from vigor_client.transport.wire import REQUEST_ID_HEADER, HttpCall, Wire

_MAX_QUOTED_CHARACTERS = 200
_OF_A_PROXY = {
    413: "takes no body of this size: raise its limit (nginx: client_max_body_size)",
    502: "did not reach it: is the service running, and is this its address?",
    503: "says that it is not available: is the service running?",
    504: "waited too long for it: raise its time limit (nginx: proxy_read_timeout)",
}
"""Status -> meaning of a refusal without a problem document, which a proxy or load balancer wrote."""

Answer = TypeVar("Answer", bound=WireModel)
Result = TypeVar("Result")
ReaderResult = TypeVar("ReaderResult", covariant=True)


class Reader(Protocol[ReaderResult]):
    """Reads one answer: takes its chunks if it is streamed in lines, and returns the result at its end."""

    def take(self, response: httpx.Response, chunk: bytes) -> None: ...
    def result(self, response: httpx.Response) -> ReaderResult: ...


class Exchange:
    """Sends calls over a wire under a retry policy. ``random`` gives uniform numbers in [0, 1)."""

    def __init__(self, wire: Wire, policy: RetryPolicy, *, random: Callable[[], float]) -> None:
        self.wire = wire
        self._policy = policy
        self._random = random

    async def fetch(self, call: HttpCall, schema: type[Answer], *, also_status: int | None = None) -> Answer:
        """Send ``call`` and return its answer; ``also_status`` is one more status whose body is ``schema``.

        Raises:
            TransportError: no answer arrived, not even to the retries.
            ProblemError: the service refused.
            UnexpectedAnswerError: the answer does not follow the contract.
        """
        return parse(await self.send(call, also_status=also_status), schema)

    async def send(self, call: HttpCall, *, also_status: int | None = None) -> httpx.Response:
        """Send ``call`` and return the answer, unread. Raises as ``fetch``, except for the body's schema."""
        return await self._try(call, lambda call: self._attempt(call, also_status))

    async def stream(self, call: HttpCall, begin: Callable[[], Reader[Result]]) -> Result:
        """Send ``call`` and return what a reader makes of its answer; each attempt begins with another reader.

        Raises as ``fetch``, or what the reader raises, which is retried like any other failure.
        """
        return await self._try(call, lambda call: self._read(call, begin()))

    async def _try(self, call: HttpCall, attempt: Callable[[HttpCall], Awaitable[Result]]) -> Result:
        call = replace(call, headers={**call.headers, REQUEST_ID_HEADER: uuid.uuid4().hex})
        started_seconds = self.wire.clock_seconds()
        retries = 0
        while True:
            try:
                return await attempt(call)
            except VigorError as error:
                elapsed_seconds = self.wire.clock_seconds() - started_seconds
                delay_seconds = self._delay_seconds(error, call, retries, elapsed_seconds)
                if delay_seconds is None:
                    raise
            await self.wire.sleep(delay_seconds)
            retries += 1

    async def _attempt(self, call: HttpCall, also_status: int | None) -> httpx.Response:
        try:
            response = await self.wire.send(call)
        except httpx.RequestError as error:
            raise transport_error(error, call) from error
        if not response.is_success and response.status_code != also_status:
            raise refusal_error(response)
        return response

    async def _read(self, call: HttpCall, reader: Reader[Result]) -> Result:
        try:
            response = await self.wire.stream(call, reader.take)
        except httpx.RequestError as error:
            raise transport_error(error, call) from error
        if not response.is_success:
            raise refusal_error(response)
        return reader.result(response)

    def _delay_seconds(self, error: VigorError, call: HttpCall, retries: int, elapsed_seconds: float) -> float | None:
        failure = failure_of(error)
        if failure is None:
            return None
        return self._policy.delay_seconds(
            failure,
            retries=retries,
            elapsed_seconds=elapsed_seconds,
            jitter=self._random(),
            repeat_seconds=call.repeat_seconds,
        )


def failure_of(error: VigorError) -> Failure | None:
    """Return an error as the retry policy sees it; None if a retry is pointless."""
    if isinstance(error, TransportError):
        return Failure()
    if isinstance(error, ProblemError):
        return refusal(error.status, error.code, retry_after_seconds=error.retry_after_seconds)
    if isinstance(error, UnexpectedAnswerError):
        return refusal(error.status, None, retry_after_seconds=error.retry_after_seconds)
    return None


def transport_error(error: httpx.RequestError, call: HttpCall) -> TransportError:
    """Return httpx's failure to get an answer as a ``TransportError`` that says where and what."""
    request_id = call.headers[REQUEST_ID_HEADER]
    place = f"{call.method} {error.request.url}"
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError):
        said = _why_unreachable(error) or reason
        return UnreachableError(f"cannot reach the service: {place}: {said}", request_id=request_id)
    if isinstance(error, httpx.TimeoutException):
        # While an answer is streamed in lines, less silence is allowed than before it begins.
        limit_seconds = error.request.extensions.get("timeout", {}).get("read", call.timeout_seconds)
        message = f"no answer within {limit_seconds:g} s: {place} (request {request_id})"
        return AnswerTimeoutError(message, request_id=request_id)
    return ConnectionLostError(f"connection lost: {place}: {reason} (request {request_id})", request_id=request_id)


def _why_unreachable(error: httpx.RequestError) -> str | None:
    """Return the cause of a refused connection and the remedy; None if the error is another one."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "the name of the host has no address; correct the URL"
    if not any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return None
    if is_this_machine(error.request.url.host):
        return "nothing listens there; start a service with `vigor-service`, or give the URL of another one"
    return "the connection was refused; check that the service runs there, and the port in the URL"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it; asyncio gives a group of one for each address of a host."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _causes(inner)
    if (cause := error.__cause__ or error.__context__) is not None:
        yield from _causes(cause)


def refusal_error(response: httpx.Response) -> VigorError:
    """Return the error that an unsuccessful answer means."""
    try:
        problem = Problem.model_validate_json(response.content)
    except pydantic.ValidationError:
        return _refusal_of_a_proxy(response)
    return problem_error(problem, response, retry_after_seconds=retry_after_of(response))


def _refusal_of_a_proxy(response: httpx.Response) -> UnexpectedAnswerError:
    """Return the error for a refusal that is not a problem document."""
    if said := _OF_A_PROXY.get(response.status_code):
        message = f"was refused by a proxy in front of the service, which {said} ({response.status_code})"
        return _unexpected(response, message)
    return unexpected(response, "a body that is not a problem document")


def problem_error(problem: Problem, response: httpx.Response, *, retry_after_seconds: float) -> ProblemError:
    """Return an error of the class for the problem's code, with the problem's data."""
    return PROBLEM_ERRORS.get(problem.code, ProblemError)(
        problem, request_id=request_id_of(response), retry_after_seconds=retry_after_seconds
    )


def parse(response: httpx.Response, schema: type[Answer]) -> Answer:
    """Check the body of an answer against ``schema``.

    Raises:
        UnexpectedAnswerError: it does not fit.
    """
    try:
        return schema.model_validate_json(response.content)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise unexpected(response, f"a body that is not {schema.__name__}: {place}: {first['msg']}") from error


def unexpected(response: httpx.Response, what: str, *, body: bytes | None = None) -> UnexpectedAnswerError:
    """Return an error that shows the answer and its origin; ``body`` is the wrong line of a streamed answer."""
    text = (response.text if body is None else body.decode(errors="replace"))[:_MAX_QUOTED_CHARACTERS]
    content_type = response.headers.get("Content-Type", "no content type")
    return _unexpected(response, f"answered with {what} ({response.status_code}, {content_type}): {text!r}")


def _unexpected(response: httpx.Response, message: str) -> UnexpectedAnswerError:
    request = response.request
    return UnexpectedAnswerError(
        f"{request.method} {request.url} {message}",
        status=response.status_code,
        request_id=request_id_of(response),
        retry_after_seconds=retry_after_of(response),
    )


def mixed_up(response: httpx.Response, what: str) -> MixedUpAnswerError:
    """Return an error that says what arrived instead of the answer to this request."""
    request, request_id = response.request, request_id_of(response)
    message = f"an answer to another request: {request.method} {request.url} answered {what} (request {request_id})"
    return MixedUpAnswerError(message, request_id=request_id)


def request_id_of(response: httpx.Response) -> str:
    """Return the request id in the answer; the client's own id if the answer has none."""
    return response.headers.get(REQUEST_ID_HEADER) or response.request.headers.get(REQUEST_ID_HEADER, "")


def retry_after_of(response: httpx.Response) -> float:
    """Return the seconds that the answer asks to wait, else 0. A date counts from the answer's date: clocks differ."""
    now = parse_date(response.headers.get("Date")) or datetime.now(UTC)
    return parse_retry_after(response.headers.get("Retry-After"), now=now)
