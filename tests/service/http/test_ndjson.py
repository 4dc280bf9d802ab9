import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest
from starlette.types import Message

from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import ErrorLine
from vigor_service.errors import EngineFailedError, QueueFullError
from vigor_service.http.lines_response import LinesResponse
from vigor_service.http.ndjson import lines_of, with_last_error

NEVER_SECONDS = 60.0


async def test_what_is_put_before_a_failure_is_read_before_it() -> None:
    async def work(put: Callable[[str], None]) -> None:
        put("one")
        put("two")
        raise EngineFailedError("it broke")

    lines = lines_of(work, beat_seconds=NEVER_SECONDS)
    assert [await anext(lines), await anext(lines)] == ["one\n", "two\n"]
    with pytest.raises(EngineFailedError):
        await anext(lines)


async def test_the_work_does_not_wait_for_the_reader() -> None:
    done = asyncio.Event()

    async def work(put: Callable[[str], None]) -> None:
        for number in range(100):
            put(str(number))
            await asyncio.sleep(0)
        done.set()

    lines = lines_of(work, beat_seconds=NEVER_SECONDS)
    first = await anext(lines)
    async with asyncio.timeout(10):
        await done.wait()
    assert [first, *[line async for line in lines]] == [f"{number}\n" for number in range(100)]


def test_closing_the_lines_cancels_the_work() -> None:
    async def main() -> bool:
        ended = asyncio.Event()

        async def work(put: Callable[[str], None]) -> None:
            put("one")
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        lines = lines_of(work, beat_seconds=NEVER_SECONDS)
        assert await anext(lines) == "one\n"
        await lines.aclose()
        async with asyncio.timeout(10):
            return await ended.wait()

    assert asyncio.run(main())


async def test_a_failure_after_the_first_line_is_the_last_one_with_its_retry_after() -> None:
    told: list[Problem] = []

    async def failing() -> AsyncGenerator[str]:
        yield "two\n"
        raise QueueFullError("come back", retry_after_seconds=3.0)

    *lines, last = [line async for line in with_last_error("one\n", failing(), on_problem=told.append)]
    assert lines == ["one\n", "two\n"]
    error = ErrorLine.model_validate_json(last)
    assert (error.error.code, error.retry_after_seconds) == ("queue_full", 3.0)
    assert [problem.code for problem in told] == ["queue_full"]


def test_a_client_that_takes_nothing_is_given_up_and_its_lines_are_closed() -> None:
    closed: list[bool] = []
    gone = asyncio.Event()

    async def endless() -> AsyncGenerator[str]:
        try:
            while True:
                yield "\n"
        finally:
            closed.append(True)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the peer's window stays closed

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    response = LinesResponse(endless(), timeout_seconds=0.05, on_client_gone=gone.set)
    scope = {"type": "http", "state": {"request_id": "r"}}
    asyncio.run(asyncio.wait_for(response(scope, receive, send), 10))
    assert closed == [True]
    assert gone.is_set()
