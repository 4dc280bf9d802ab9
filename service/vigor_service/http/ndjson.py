"""An answer in lines, sent while the rest is being computed. Knows neither HTTP nor the content of the lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from vigor_client.schemas.problems import Problem
from vigor_client.schemas.scoring import ErrorLine
from vigor_service.errors import ServiceError
from vigor_service.http.problems import problem_of


async def lines_of(
    work: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]], *, beat_seconds: float
) -> AsyncGenerator[str]:
    """Yield each line of ``work``, and an empty one whenever none was ready for ``beat_seconds``.

    The work never waits for the reader: unread lines are kept, so their number must be bounded.
    Closing the generator cancels the work.

    Raises:
        ServiceError: the work raised it; all lines put before the error have been yielded.
    """
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    working = asyncio.ensure_future(work(lines.put_nowait))
    working.add_done_callback(lambda _: lines.put_nowait(None))
    try:
        while (line := await _next(lines, beat_seconds)) is not None:
            yield f"{line}\n"
        working.result()
    finally:
        working.cancel()


async def with_last_error(
    first: str, lines: AsyncGenerator[str], *, on_problem: Callable[[Problem], None]
) -> AsyncGenerator[str]:
    """Yield the first line, then the others. A later failure becomes the last line, and calls ``on_problem``."""
    async with aclosing(lines):
        yield first
        try:
            async for line in lines:
                yield line
        except ServiceError as error:
            problem = problem_of(error)
            on_problem(problem)
            last = ErrorLine(error=problem, retry_after_seconds=error.retry_after_seconds)
            yield f"{last.model_dump_json()}\n"


async def _next(lines: asyncio.Queue[str | None], beat_seconds: float) -> str | None:
    try:
        async with asyncio.timeout(beat_seconds):
            return await lines.get()
    except TimeoutError:
        return ""
