"""Threads of one kind of work never keep another kind waiting, and no work keeps a thread for ever."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import DEADLINE_SECONDS, until
from vigor_service.errors import ClientGoneError, PayloadTooLargeError, QueueFullError
from vigor_service.threads.preparation import NUM_TEXT_THREADS, Preparation, WorkerPool
from vigor_service.threads.work_limit import checkpoint


@pytest.fixture
def preparation() -> Iterator[Preparation]:
    preparation = Preparation(seconds=1000.0)
    yield preparation
    preparation.close()


def _loop_for_ever(begun: threading.Semaphore) -> None:
    begun.release()
    while True:
        checkpoint()


async def test_ids_do_not_wait_for_texts(preparation: Preparation) -> None:
    gate = threading.Event()

    texts = [asyncio.ensure_future(preparation.run_on_texts(gate.wait, DEADLINE_SECONDS)) for _ in range(100)]
    answer = await preparation.run(lambda: 7)
    assert not any(text.done() for text in texts)
    gate.set()
    await asyncio.gather(*texts)
    assert answer == 7


async def test_work_that_loops_is_ended_and_those_behind_it_are_served() -> None:
    pool, begun = WorkerPool("texts", num_threads=2, seconds=0.05), threading.Semaphore(0)

    loops = (pool.run(_loop_for_ever, begun) for _ in range(6))
    *ended, answer = await asyncio.gather(*loops, pool.run(lambda: 7), return_exceptions=True)
    assert answer == 7
    assert {type(error) for error in ended} == {PayloadTooLargeError}
    pool.close()


async def test_work_whose_caller_leaves_ends(preparation: Preparation) -> None:
    begun = threading.Semaphore(0)

    loops = [
        asyncio.ensure_future(preparation.run_on_texts(_loop_for_ever, begun)) for _ in range(2 * NUM_TEXT_THREADS)
    ]
    await until(lambda: begun.acquire(blocking=False))
    for work in loops:
        work.cancel()
    assert await preparation.run_on_texts(lambda: 7) == 7


async def test_closing_ends_what_runs() -> None:
    preparation, begun = Preparation(seconds=1000.0), threading.Semaphore(0)

    work = asyncio.ensure_future(preparation.run_on_texts(_loop_for_ever, begun))
    await until(lambda: begun.acquire(blocking=False))
    assert not preparation.is_idle
    preparation.close()
    with pytest.raises(ClientGoneError):
        await work
    assert preparation.is_idle


async def test_what_was_taken_back_leaves_work_that_runs_counted() -> None:
    pool, begun, gate = WorkerPool("texts", num_threads=1, seconds=1000.0), threading.Semaphore(0), threading.Event()

    def work() -> None:
        begun.release()
        gate.wait(DEADLINE_SECONDS)

    running, waiting = (asyncio.ensure_future(pool.run(work)) for _ in range(2))
    await until(lambda: begun.acquire(blocking=False))
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not pool.is_idle
    gate.set()
    await running
    assert pool.is_idle
    pool.close()


async def test_no_more_may_wait_than_is_said() -> None:
    pool, gate = WorkerPool("texts", num_threads=1, seconds=1000.0, max_waiting=3), threading.Event()

    taken = [asyncio.ensure_future(pool.run(gate.wait, DEADLINE_SECONDS)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as refused:
        await pool.run(gate.wait, DEADLINE_SECONDS)
    assert refused.value.retry_after_seconds
    gate.set()
    await asyncio.gather(*taken)
    assert await pool.run(lambda: 7) == 7
    pool.close()
