"""Disks that do not answer: their callers get an error in time, and other kinds of work go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator

import pytest

from tests.support.waiting import wait_until
from vigor_service.errors import DeadlineExceededError
from vigor_service.threads.file_threads import FileThreads

STEP_SECONDS = 0.05


@pytest.fixture
def disk() -> Iterator[threading.Event]:
    """A disk that answers once this is set; at the end it does, or its threads would hold the process."""
    answers = threading.Event()
    yield answers
    answers.set()


def test_work_returns_what_it_returns_and_raises_what_it_raises() -> None:
    threads = FileThreads()
    assert asyncio.run(threads.run("local", max, 1, 2)) == 2
    with pytest.raises(ZeroDivisionError):
        asyncio.run(threads.run("state", lambda: 1 // 0))
    with pytest.raises(TimeoutError):  # the disk's own error is not taken for the limit
        asyncio.run(threads.run("staging", _time_out))
    assert threads.is_idle


def _time_out() -> None:
    raise TimeoutError


def test_a_disk_that_does_not_answer_is_named(disk: threading.Event) -> None:
    threads = FileThreads(step_seconds=STEP_SECONDS)
    with pytest.raises(DeadlineExceededError, match=r"disk of --weights-root did not answer within 0\.05 seconds"):
        asyncio.run(threads.run("local", disk.wait))
    assert not threads.is_idle
    disk.set()
    wait_until(lambda: threads.is_idle)


async def test_threads_of_one_kind_do_not_starve_those_of_another(disk: threading.Event) -> None:
    threads = FileThreads(step_seconds=STEP_SECONDS)
    hanging = [asyncio.create_task(threads.run("local", disk.wait)) for _ in range(20)]
    await asyncio.sleep(0)
    for _ in range(20):
        assert await threads.run("staging", max, 1, 2) == 2
    assert all(isinstance(error, DeadlineExceededError) for error in await _errors(hanging))


async def _errors(tasks: list[asyncio.Task[bool]]) -> list[BaseException | bool]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_waited_for_a_thread_until_its_time_was_over_is_not_begun_any_more(disk: threading.Event) -> None:
    begun = threading.Event()
    threads = FileThreads(model_seconds=STEP_SECONDS)
    for work in (disk.wait, begun.set):
        with pytest.raises(DeadlineExceededError):
            await threads.run("state", work)
    disk.set()
    wait_until(lambda: threads.is_idle)
    assert not begun.is_set()


def counting(ended: list[str], disk: threading.Event | None = None) -> Generator[None, None, str]:
    try:
        yield
        if disk is not None:
            disk.wait()
        yield
    finally:
        ended.append(threading.current_thread().name)
    return "done"


def test_a_generator_runs_to_its_end_on_threads_of_its_kind() -> None:
    ended: list[str] = []
    assert asyncio.run(FileThreads().run_steps("local", counting(ended))) == "done"
    assert ended[0].startswith("files-local")


def test_a_generator_whose_step_hangs_is_closed_when_the_step_has_ended(disk: threading.Event) -> None:
    ended: list[str] = []
    threads = FileThreads(step_seconds=STEP_SECONDS)
    with pytest.raises(DeadlineExceededError):
        asyncio.run(threads.run_steps("local", counting(ended, disk)))
    assert ended == []
    disk.set()
    wait_until(lambda: len(ended) == 1)


async def test_a_generator_that_is_cancelled_is_closed(disk: threading.Event) -> None:
    ended: list[str] = []
    threads = FileThreads()
    running = asyncio.create_task(threads.run_steps("local", counting(ended, disk)))
    while threads.is_idle:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    disk.set()
    wait_until(lambda: len(ended) == 1)
