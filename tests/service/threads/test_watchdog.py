"""A thread that hangs or has ended is noticed, said once, and forgotten when it goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import live_service
from tests.support.waiting import until, wait_until
from vigor_service.errors import UnhealthyError
from vigor_service.runtime import LoadedModel
from vigor_service.threads.watchdog import Watchdog
from vigor_service.threads.worker import WorkerThread

LIMIT_SECONDS = 900.0
GROUP = {"prompt_ids": [1], "completions": [[2]]}


@pytest.fixture
def now() -> list[float]:
    """What the thread's clock says."""
    return [0.0]


@pytest.fixture
def thread(now: list[float]) -> Iterator[WorkerThread]:
    worker = WorkerThread("compute", clock=lambda: now[0])
    yield worker
    worker.close()


async def test_a_piece_of_work_that_takes_too_long_is_noticed_until_it_ends(
    thread: WorkerThread, now: list[float], text_log: pytest.LogCaptureFixture
) -> None:
    watchdog = Watchdog(thread, limit_seconds=LIMIT_SECONDS)
    begun, gate = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert gate.wait(10)

    watchdog.require_progress()
    working = asyncio.ensure_future(thread.run(work))
    await until(begun.is_set)
    now[0] = LIMIT_SECONDS
    watchdog.require_progress()
    now[0] += 1
    for _ in range(3):
        with pytest.raises(UnhealthyError, match="worked on one batch for 901 s; the limit is 900 s"):
            watchdog.require_progress()
    gate.set()
    await working
    watchdog.require_progress()
    assert [record.levelno for record in text_log.records] == [logging.ERROR]
    assert "for 901 s" in text_log.text


async def test_a_thread_that_has_ended_is_noticed(thread: WorkerThread, text_log: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog(thread, limit_seconds=LIMIT_SECONDS)

    await thread.run(threading.current_thread)
    watchdog.require_progress()
    thread.close()  # ends it, as an error outside of any work would
    await until(lambda: not thread.is_alive)
    with pytest.raises(UnhealthyError, match="has ended"):
        watchdog.require_progress()
    assert "unhealthy reason='the compute thread has ended'" in text_log.text


def test_a_service_whose_batch_hangs_is_unhealthy_and_one_that_loads_is_not(tmp_path: Path) -> None:
    scorer, gate = FakeScorer(), threading.Event()
    scorer.gate.clear()

    def load() -> LoadedModel:
        assert gate.wait(20)
        return LoadedModel(scorer, None)

    with (
        live_service(tmp_path, load_model=load, wait_ready=False, watchdog_seconds=1e-9) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        assert service.http.get("/healthz").status_code == 200
        gate.set()
        wait_until(lambda: service.http.get("/readyz").status_code == 200)
        pending = pool.submit(service.score, groups=[GROUP])
        assert scorer.is_scoring.wait(10)
        health = service.http.get("/healthz")
        assert (health.status_code, health.json()["reason"]) == (503, "unhealthy")
        scorer.gate.set()
        assert pending.result().status_code == 200
        wait_until(lambda: service.http.get("/healthz").status_code == 200)
