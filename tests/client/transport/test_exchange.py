"""Retries and answers of one call, over a wire that records instead of sending and waiting."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TypeVar

import httpx
import pytest

from tests.client.fake_service import answer, problem
from vigor_client.errors import (
    AnswerTimeoutError,
    ConnectionLostError,
    InvalidRequestError,
    LoadingError,
    ProblemError,
    QueueFullError,
    UnexpectedAnswerError,
    UnreachableError,
    WeightsPoisonedError,
)
from vigor_client.schemas.service import Health
from vigor_client.transport.exchange import Exchange
from vigor_client.transport.retry import RetryPolicy
from vigor_client.transport.wire import REQUEST_ID_HEADER, Body, HttpCall, TakeChunk, run_blocking

T = TypeVar("T")
Outcome = httpx.Response | Callable[[httpx.Request], Exception]
OK = answer(Health(status="ok"))


class ScriptedWire:
    """Answers calls from a list; sleeping moves its clock."""

    def __init__(self, *outcomes: Outcome, seconds_per_call: float = 0.0) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[HttpCall] = []
        self.sleeps: list[float] = []
        self.now_seconds = 100.0
        self._seconds_per_call = seconds_per_call

    async def send(self, call: HttpCall) -> httpx.Response:
        self.calls.append(call)
        self.now_seconds += self._seconds_per_call
        outcome = self.outcomes.pop(0)
        request = httpx.Request(call.method, f"http://service{call.path}", headers=call.headers)
        if not isinstance(outcome, httpx.Response):
            raise outcome(request)
        outcome.request = request
        return outcome

    async def stream(self, call: HttpCall, take: TakeChunk) -> httpx.Response:
        response = await self.send(call)
        take(response, response.content)
        return response

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_seconds += seconds

    async def compute(self, function: Callable[[], T]) -> T:
        return function()

    def clock_seconds(self) -> float:
        return self.now_seconds


def fails(kind: type[httpx.RequestError]) -> Callable[[httpx.Request], Exception]:
    return lambda request: kind("it broke", request=request)


def fetch(wire: ScriptedWire, *, repeat_seconds: float = math.inf, policy: RetryPolicy | None = None) -> Health:
    exchange = Exchange(wire, policy or RetryPolicy(max_retries=3), random=lambda: 1.0)
    call = HttpCall(
        method="POST", path="/v1/thing", timeout_seconds=5.0, repeat_seconds=repeat_seconds, body=Body.json("{}")
    )
    return run_blocking(exchange.fetch(call, Health))


def test_an_answer_is_returned_without_waiting() -> None:
    wire = ScriptedWire(OK)
    assert fetch(wire) == Health(status="ok")
    assert wire.sleeps == []


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_a_safe_call_is_repeated_after_a_failed_connection(kind: type[httpx.RequestError]) -> None:
    wire = ScriptedWire(fails(kind), fails(kind), OK)
    assert fetch(wire).status == "ok"
    assert wire.sleeps == [0.5, 1.0]


def test_all_attempts_of_a_call_share_one_request_id() -> None:
    wire = ScriptedWire(problem(503, "loading"), OK)
    fetch(wire)
    ids = {call.headers[REQUEST_ID_HEADER] for call in wire.calls}
    assert len(wire.calls) == 2
    assert len(ids) == 1


def test_two_calls_have_two_request_ids() -> None:
    wire = ScriptedWire(OK, answer(Health(status="ok")))
    fetch(wire)
    fetch(wire)
    assert len({call.headers[REQUEST_ID_HEADER] for call in wire.calls}) == 2


def test_retry_after_is_obeyed() -> None:
    wire = ScriptedWire(problem(429, "queue_full", headers={"Retry-After": "4"}), OK)
    fetch(wire)
    assert wire.sleeps == [4.5]


def test_the_last_refusal_is_raised_when_the_tries_are_spent() -> None:
    wire = ScriptedWire(*[problem(429, "queue_full") for _ in range(4)])
    with pytest.raises(QueueFullError):
        fetch(wire)
    assert wire.outcomes == []


def test_time_spent_in_attempts_counts() -> None:
    wire = ScriptedWire(*[fails(httpx.ReadTimeout)] * 9, seconds_per_call=40.0)
    with pytest.raises(AnswerTimeoutError, match="no answer within 5 s"):
        fetch(wire, policy=RetryPolicy(max_retries=9, total_seconds=100.0))
    assert len(wire.calls) == 3


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (422, "invalid_request", InvalidRequestError),
        (503, "weights_poisoned", WeightsPoisonedError),
        (500, "internal", ProblemError),
        (418, "something_new", ProblemError),
    ],
)
def test_what_would_fail_again_fails_at_once(status: int, code: str, error: type[ProblemError]) -> None:
    wire = ScriptedWire(problem(status, code))
    with pytest.raises(error) as raised:
        fetch(wire)
    assert type(raised.value) is error
    assert raised.value.code == code
    assert wire.sleeps == []


def test_a_call_about_now_is_never_repeated() -> None:
    with pytest.raises(UnreachableError, match="cannot reach the service: POST http://service/v1/thing: it broke"):
        fetch(ScriptedWire(fails(httpx.ConnectError)), repeat_seconds=0.0)
    with pytest.raises(LoadingError):
        fetch(ScriptedWire(problem(503, "loading")), repeat_seconds=0.0)


def test_a_call_with_a_limit_of_its_own_is_given_up_there() -> None:
    wire = ScriptedWire(*[fails(httpx.ReadError)] * 9)
    with pytest.raises(ConnectionLostError):
        fetch(wire, repeat_seconds=1.5, policy=RetryPolicy(max_retries=9))
    assert wire.sleeps == [0.5]


def test_a_conflict_that_passes_is_waited_for() -> None:
    wire = ScriptedWire(problem(409, "update_state", headers={"Retry-After": "1"}), OK)
    fetch(wire)
    assert wire.sleeps == [1.5]


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(days=-3), timedelta(days=3)])
def test_a_retry_after_that_is_a_date_counts_by_the_clock_of_who_sent_it(ahead: timedelta) -> None:
    there = datetime.now(UTC) + ahead
    dates = {"Date": format_datetime(there), "Retry-After": format_datetime(there + timedelta(seconds=4))}
    wire = ScriptedWire(problem(429, "queue_full", headers=dates), OK)
    fetch(wire)
    assert wire.sleeps == [4.5]


def test_a_retry_after_that_is_a_date_counts_by_our_clock_where_there_is_no_other() -> None:
    header = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100))}
    wire = ScriptedWire(problem(429, "queue_full", headers=header), OK)
    fetch(wire)
    assert 90 < wire.sleeps[0] <= 100.5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>hello</html>", "a body that is not Health: the body: Invalid JSON"),
        (b'{"status": "fine"}', "a body that is not Health: status: Input should be 'ok' or 'unavailable'"),
        (b'{"status": "ok", "colour": "blue"}', "a body that is not Health: colour: Extra inputs"),
        (b"\xff\xfe", "a body that is not Health"),
        (b"", "a body that is not Health"),
    ],
)
def test_an_answer_outside_the_contract_is_named_and_not_retried(body: bytes, said: str) -> None:
    wire = ScriptedWire(httpx.Response(200, content=body))
    with pytest.raises(UnexpectedAnswerError, match=said):
        fetch(wire)


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_refusal_that_is_no_problem_document_is_quoted_in_part(status: int) -> None:
    wire = ScriptedWire(httpx.Response(status, text="nginx " * 1000, headers={"Content-Type": "text/html"}))
    with pytest.raises(UnexpectedAnswerError, match="not a problem document") as raised:
        fetch(wire)
    assert raised.value.status == status
    assert "text/html" in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("status", "said"), [(413, "client_max_body_size"), (502, "did not reach"), (503, "not available"), (504, "time")]
)
def test_a_refusal_of_a_proxy_says_what_to_do_instead_of_its_page(status: int, said: str) -> None:
    refusals = [httpx.Response(status, text="<html>", headers={"Content-Type": "text/html"}) for _ in range(10)]
    with pytest.raises(UnexpectedAnswerError, match=said) as raised:
        fetch(ScriptedWire(*refusals))
    assert raised.value.status == status
    assert "<html>" not in str(raised.value)


def test_the_services_own_request_id_wins() -> None:
    wire = ScriptedWire(problem(422, "invalid_request", headers={REQUEST_ID_HEADER: "theirs"}))
    with pytest.raises(InvalidRequestError) as raised:
        fetch(wire)
    assert raised.value.request_id == "theirs"
