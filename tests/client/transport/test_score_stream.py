"""Answers in lines: what both clients make of them, of their failures, and of services that do not know them."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import httpx
import pytest

from tests.client.fake_service import answer, problem
from tests.client.test_client import DIGEST, GROUP, URL, client_of, scores
from tests.client.transport.test_exchange import ScriptedWire
from tests.client.transport.test_sockets import DEADLINE_SECONDS, HeldOpen, server
from vigor_client import (
    AnswerTimeoutError,
    AsyncVigorClient,
    Completion,
    ConnectionLostError,
    Group,
    GroupScore,
    MixedUpAnswerError,
    ProblemError,
    UnexpectedAnswerError,
    VigorClient,
    WeightVersionMismatchError,
)
from vigor_client.schemas.common import WireModel
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE, ErrorLine, GroupLine, LastLine, ScoreRequest, ScoreResponse
from vigor_client.transport.connections import AsyncConnections, Connections
from vigor_client.transport.endpoints import Endpoints
from vigor_client.transport.exchange import Exchange
from vigor_client.transport.retry import RetryPolicy
from vigor_client.transport.wire import AsyncWire, BlockingWire, run_blocking

LINES = {"Content-Type": LINES_MEDIA_TYPE}
SECOND = Group(id="line\u2028separator", prompt_ids=[1], completions=[Completion(text="five")])
GROUPS = [GROUP, SECOND]
REQUEST = ScoreRequest(groups=GROUPS)
WHOLE = scores(sizes=(2, 1)).model_copy(
    update={"groups": [scores(group_id=group.id, sizes=(len(group.completions),)).groups[0] for group in GROUPS]}
)
BEAT = b"\n"


def line(model: WireModel) -> bytes:
    return model.model_dump_json().encode() + b"\n"


def group_line(index: int, group: GroupScore | None = None) -> bytes:
    group = group or WHOLE.groups[index]
    return line(GroupLine(index=index, id=group.id, completions=group.completions))


def error_line(code: str, status: int, *, retry_after_seconds: float | None = None, **data: int) -> bytes:
    document = problem(status, code, headers=None, **data).content
    return line(ErrorLine(error=Problem.model_validate_json(document), retry_after_seconds=retry_after_seconds))


FIRST_LINE, SECOND_LINE = group_line(0), group_line(1)
LAST_LINE = line(LastLine(**{name: value for name, value in dict(WHOLE).items() if name != "groups"}))
COMPLETE = [BEAT, SECOND_LINE, BEAT, FIRST_LINE, LAST_LINE]


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces, for both clients."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = list(pieces)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class Streaming:
    """Answers each request with the next body of lines."""

    def __init__(self, *bodies: Sequence[bytes]) -> None:
        self.bodies = list(bodies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(200, headers=LINES, stream=Chunks(self.bodies.pop(0)))


def wire_of(*bodies: Sequence[bytes]) -> ScriptedWire:
    return ScriptedWire(*[httpx.Response(200, headers=LINES, content=b"".join(body)) for body in bodies])


def score_over(wire: ScriptedWire, told: list[int] | None = None) -> ScoreResponse:
    exchange = Exchange(wire, RetryPolicy(max_retries=2), random=lambda: 1.0)
    indices = [] if told is None else told
    return run_blocking(Endpoints(exchange, timeout_seconds=5.0).score(REQUEST, lambda index, _: indices.append(index)))


def test_lines_are_put_together_to_the_whole_answer_however_they_are_cut() -> None:
    service = Streaming(COMPLETE, [bytes([byte]) for byte in b"".join(COMPLETE)], [b"".join(COMPLETE)])
    with client_of(service) as client:
        assert [client.score(GROUPS) for _ in range(3)] == [WHOLE] * 3
    assert service.requests[0].headers["Accept"] == f"{LINES_MEDIA_TYPE}, application/json"


def test_the_async_client_reads_them_as_the_blocking_one() -> None:
    async def main() -> ScoreResponse:
        async with AsyncVigorClient(URL, transport=httpx.MockTransport(Streaming(COMPLETE))) as client:
            return await client.score(GROUPS, on_group=lambda index, group: told.append((index, group.id)))

    told: list[tuple[int, str | None]] = []
    assert asyncio.run(main()) == WHOLE
    assert told == [(1, SECOND.id), (0, GROUP.id)]


def test_groups_are_told_of_also_when_the_answer_comes_as_a_whole() -> None:
    told: list[int] = []
    with client_of(lambda _: answer(WHOLE)) as client:
        assert client.score(GROUPS, on_group=lambda index, _: told.append(index)) == WHOLE
    assert told == [0, 1]


def test_what_the_caller_raises_while_it_is_told_comes_through() -> None:
    def interrupt(index: int, group: GroupScore) -> None:
        raise RuntimeError(f"enough after {index} {group.id}")

    with client_of(Streaming(COMPLETE)) as client, pytest.raises(RuntimeError, match="enough after 1 line"):
        client.score(GROUPS, on_group=interrupt)


def test_lines_that_end_too_early_are_asked_for_again_and_each_group_is_told_of_once() -> None:
    told: list[int] = []
    wire = wire_of([SECOND_LINE], [SECOND_LINE, FIRST_LINE, LAST_LINE[:-1]], COMPLETE)
    assert score_over(wire, told) == WHOLE
    assert told == [1, 0]
    assert wire.sleeps == [0.5, 1.0]


def test_lines_that_always_end_too_early_are_a_lost_connection() -> None:
    with pytest.raises(ConnectionLostError, match=r"POST http://service/v1/score: .* before its last line") as raised:
        score_over(wire_of(*[[FIRST_LINE, SECOND_LINE]] * 3))
    assert raised.value.request_id


def test_an_error_line_is_the_error_of_its_code() -> None:
    wire = wire_of([BEAT, error_line("weight_version_mismatch", 409, have=3, want=4)])
    with pytest.raises(WeightVersionMismatchError) as raised:
        score_over(wire)
    assert (raised.value.have, raised.value.want, raised.value.status) == (3, 4, 409)


def test_an_error_line_that_waiting_cures_is_waited_for_as_long_as_it_says() -> None:
    wire = wire_of([BEAT, error_line("queue_full", 429, retry_after_seconds=4.0)], COMPLETE)
    assert score_over(wire) == WHOLE
    assert wire.sleeps == [4.5]


def test_an_error_line_that_waiting_does_not_cure_is_final() -> None:
    wire = wire_of([FIRST_LINE, error_line("internal", 500)])
    with pytest.raises(ProblemError):
        score_over(wire)
    assert wire.sleeps == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"<html>\n"], "a line that is not in the contract"),
        ([b'{"index": 0}\n'], "a line that is not in the contract"),
        ([FIRST_LINE.replace(b"{", b'{"colour": 1, ', 1)], "a line that is not in the contract"),
        ([FIRST_LINE, FIRST_LINE], "group 0 once more"),
        ([FIRST_LINE, LAST_LINE], "a last line before group 1"),
        ([*COMPLETE, SECOND_LINE], "a line after the last one"),
        ([*COMPLETE, LAST_LINE], "a line after the last one"),
        ([b"x" * (2**24 + 1)], "a line of more than 16777216 bytes"),
    ],
)
def test_lines_that_were_not_asked_for_are_refused(lines: list[bytes], said: str) -> None:
    with pytest.raises(UnexpectedAnswerError, match=said) as raised:
        score_over(wire_of(lines))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("line_of_another", "said"),
    [
        (group_line(2, WHOLE.groups[0]), "group 2 of 2"),
        (group_line(1, scores(sizes=(1,)).groups[0]), "group 1 with the id 'q' instead of 'line"),
        (group_line(0, scores(sizes=(1,)).groups[0]), "group 0 with 1 scores of 2"),
    ],
)
def test_lines_of_another_request_are_told_to_no_one_and_asked_for_again(line_of_another: bytes, said: str) -> None:
    told: list[int] = []
    assert score_over(wire_of([line_of_another], COMPLETE), told) == WHOLE
    assert told == [1, 0]
    with pytest.raises(MixedUpAnswerError, match=said):
        score_over(wire_of(*[[line_of_another]] * 3))


def test_other_weights_than_asked_for_are_refused_in_lines_too() -> None:
    with client_of(Streaming(COMPLETE)) as client, pytest.raises(UnexpectedAnswerError, match="weight_version 3"):
        client.score(GROUPS, weight_version=4, weight_digest=DIGEST)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_silence_between_lines_is_noticed_long_before_the_timeout_of_an_answer() -> None:
    begun = HeldOpen(HEAD + chunk(BEAT) + chunk(FIRST_LINE))
    with server(begun) as url, httpx.Client(base_url=url) as http:
        exchange = Exchange(
            BlockingWire(Connections(lambda: http), silence_seconds=0.2), RetryPolicy(max_retries=0), random=lambda: 0.0
        )
        endpoints = Endpoints(exchange, timeout_seconds=DEADLINE_SECONDS)
        with pytest.raises(AnswerTimeoutError, match=r"no answer within 0\.2 s: POST .*/v1/score"):
            run_blocking(endpoints.score(REQUEST))


def test_the_async_client_notices_it_as_well() -> None:
    async def main(url: str) -> None:
        async with httpx.AsyncClient(base_url=url) as http:
            exchange = Exchange(
                AsyncWire(AsyncConnections(lambda: http), silence_seconds=0.2),
                RetryPolicy(max_retries=0),
                random=lambda: 0.0,
            )
            await Endpoints(exchange, timeout_seconds=DEADLINE_SECONDS).score(REQUEST)

    with server(HeldOpen(HEAD + chunk(BEAT))) as url, pytest.raises(AnswerTimeoutError, match=r"within 0\.2 s"):
        asyncio.run(main(url))


def test_lines_that_are_cut_off_on_the_way_are_a_lost_connection() -> None:
    with (
        server(HEAD + chunk(FIRST_LINE)) as url,
        VigorClient(url, max_retries=0) as client,
        pytest.raises(ConnectionLostError, match="/v1/score"),
    ):
        client.score(GROUPS)


def test_lines_that_come_whole_over_a_socket_are_an_answer() -> None:
    with (
        server(HEAD + b"".join(map(chunk, COMPLETE)) + b"0\r\n\r\n") as url,
        VigorClient(url, max_retries=0) as client,
    ):
        assert client.score(GROUPS) == WHOLE


def test_all_attempts_of_a_call_have_one_idempotency_key_and_no_other_call_has_it() -> None:
    answers = [httpx.Response(200, headers=LINES, content=b"".join(COMPLETE)) for _ in range(2)]
    wire = ScriptedWire(lambda request: httpx.ReadError("lost", request=request), *answers)
    endpoints = Endpoints(Exchange(wire, RetryPolicy(), random=lambda: 0.0), timeout_seconds=10)
    for _ in range(2):
        assert run_blocking(endpoints.score(REQUEST)) == WHOLE
    first, again, other = (call.headers["Idempotency-Key"] for call in wire.calls)
    assert first == again != other
