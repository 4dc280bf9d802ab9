import asyncio
import threading

import pytest

from tests.support.waiting import until
from vigor_service.threads.worker import WorkerThread


def test_everything_runs_in_order_on_one_named_thread() -> None:
    worker, seen = WorkerThread("compute"), []

    def work(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number * 2

    async def run() -> list[int]:
        return await asyncio.gather(*(worker.run(work, number) for number in range(5)))

    assert asyncio.run(run()) == [0, 2, 4, 6, 8]
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    assert {name for _, name in seen} == {"compute_0"}
    worker.close()


async def test_an_error_goes_to_who_asked_and_the_thread_goes_on() -> None:
    worker = WorkerThread("compute")

    def fail() -> None:
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        await worker.run(fail)
    assert await worker.run(lambda: 7) == 7
    worker.close()


async def test_it_is_idle_when_everything_is_done() -> None:
    worker, gate = WorkerThread("compute"), threading.Event()

    assert worker.is_idle
    task = asyncio.ensure_future(worker.run(gate.wait, 10))
    await asyncio.sleep(0)
    assert not worker.is_idle
    gate.set()
    await task
    assert worker.is_idle
    worker.close()


async def test_it_is_not_idle_after_it_was_closed_while_something_runs() -> None:
    worker, begun, gate = WorkerThread("compute"), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert gate.wait(10)

    running = asyncio.ensure_future(worker.run(work))
    waiting = asyncio.ensure_future(worker.run(work))
    await until(begun.is_set)
    worker.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not worker.is_idle
    gate.set()
    await running
    assert worker.is_idle


async def test_it_tells_for_how_long_it_has_been_busy_with_what_it_runs() -> None:
    now, begun, gates = [100.0], [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    worker = WorkerThread("compute", clock=lambda: now[0])

    def work(number: int) -> None:
        begun[number].set()
        assert gates[number].wait(10)

    assert worker.busy_seconds == 0
    pieces = [asyncio.ensure_future(worker.run(work, number)) for number in range(2)]
    for piece, has_begun, gate in zip(pieces, begun, gates, strict=True):
        await until(has_begun.is_set)
        now[0] += 7
        assert worker.busy_seconds == 7  # the second one's time begins when the first is done
        gate.set()
        await piece
    await until(lambda: worker.busy_seconds == 0)
    worker.close()


async def test_it_adds_up_how_long_it_has_worked_with_what_it_runs() -> None:
    now, begun, gate = [100.0], threading.Event(), threading.Event()
    worker = WorkerThread("compute", clock=lambda: now[0])

    def work() -> None:
        begun.set()
        assert gate.wait(10)

    assert worker.total_busy_seconds == 0
    task = asyncio.ensure_future(worker.run(work))
    await until(begun.is_set)
    now[0] = 103.0
    assert worker.total_busy_seconds == 3
    gate.set()
    await task
    now[0] = 110.0
    assert worker.total_busy_seconds == 3
    await worker.run(now.__setitem__, 0, 114.0)
    assert worker.total_busy_seconds == 7
    worker.close()
