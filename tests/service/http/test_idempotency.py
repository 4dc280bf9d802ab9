import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.support.waiting import until
from vigor_service.errors import InvalidRequestError, QueueFullError
from vigor_service.http.idempotency import MAX_KEY_CHARACTERS, IdempotentResponses, Put


class Work:
    """Counts how often it was begun; puts out a line at once, and ends with another when ``gate`` is set."""

    def __init__(self, *, fails: bool = False) -> None:
        self.num_begun = 0
        self.num_cancelled = 0
        self.gate = asyncio.Event()
        self.fails = fails

    def __call__(self, put: Put) -> Coroutine[Any, Any, None]:
        return self._run(put)

    async def _run(self, put: Put) -> None:
        self.num_begun += 1
        put("first")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.fails:
            raise QueueFullError("come back later")
        put(f"answer {self.num_begun}")


async def once(answers: IdempotentResponses, key: str | None, work: Work, body: str = "body") -> list[str]:
    lines: list[str] = []
    await answers.once(key, body, work, lines.append)
    return lines


async def test_the_same_request_gets_the_first_answer_and_is_computed_once() -> None:
    answers, work = IdempotentResponses(), Work()
    work.gate.set()
    assert [await once(answers, "k", work) for _ in range(3)] == [["first", "answer 1"]] * 3


async def test_without_a_key_every_request_is_computed() -> None:
    answers, work = IdempotentResponses(), Work()
    work.gate.set()
    assert [await once(answers, None, work) for _ in range(2)] == [["first", "answer 1"], ["first", "answer 2"]]


async def test_requests_at_the_same_time_share_the_work_and_one_that_leaves_does_not_stop_it() -> None:
    answers, work = IdempotentResponses(), Work()
    first, second = (asyncio.ensure_future(once(answers, "k", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    work.gate.set()
    assert await second == ["first", "answer 1"]
    assert (work.num_begun, work.num_cancelled) == (1, 0)


async def test_who_comes_later_gets_the_lines_so_far_at_once_and_the_others_as_they_come() -> None:
    answers, work, early, late = IdempotentResponses(), Work(), list[str](), list[str]()
    first = asyncio.ensure_future(answers.once("k", "body", work, early.append))
    await until(lambda: early == ["first"])
    second = asyncio.ensure_future(answers.once("k", "body", work, late.append))
    await until(lambda: late == ["first"])
    work.gate.set()
    await asyncio.gather(first, second)
    assert early == late == ["first", "answer 1"]


async def test_work_that_nobody_waits_for_is_cancelled_and_a_retry_begins_anew() -> None:
    answers, work = IdempotentResponses(), Work()
    first = asyncio.ensure_future(once(answers, "k", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    work.gate.set()
    assert await once(answers, "k", work) == ["first", "answer 2"]
    assert work.num_cancelled == 1


async def test_a_failure_is_told_and_not_kept() -> None:
    answers, work = IdempotentResponses(), Work(fails=True)
    work.gate.set()
    with pytest.raises(QueueFullError):
        await once(answers, "k", work)
    work.fails = False
    assert await once(answers, "k", work) == ["first", "answer 2"]


@pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_CHARACTERS + 1)])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        asyncio.run(once(IdempotentResponses(), key, Work()))
    assert refused.value.errors[0].loc == ["header", "Idempotency-Key"]


async def test_a_key_with_another_body_is_refused() -> None:
    answers, work = IdempotentResponses(), Work()
    work.gate.set()
    await once(answers, "k", work)
    with pytest.raises(InvalidRequestError) as refused:
        await once(answers, "k", work, "other")
    assert "another body" in refused.value.errors[0].msg


async def test_the_oldest_answers_are_forgotten_when_they_are_too_large_together() -> None:
    answers, work = IdempotentResponses(max_bytes=2 * len("firstanswer 1")), Work()
    work.gate.set()
    for key in ("a", "b", "c"):
        await once(answers, key, work)
    assert await once(answers, "c", work) == ["first", "answer 3"]
    assert await once(answers, "a", work) == ["first", "answer 4"]
