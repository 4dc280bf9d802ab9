"""The service process under load: what it admits it answers, what it refuses it says so, and nothing grows."""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.measuring import resident_bytes
from tests.support.service_process import STOP_SECONDS, ServiceProcess, service_process
from tests.support.waiting import wait_until
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE

PACED = ("-m", "tests.support.paced_service")
REQUEST_TOKENS = 4
BATCH_REQUESTS = 4
SETTINGS = ("--max-batch-tokens", str(BATCH_REQUESTS * REQUEST_TOKENS), "--score-cache-entries", "0")


def body(number: int) -> dict[str, object]:
    """A request of one completion, `REQUEST_TOKENS` with its prompt."""
    return {"groups": [{"prompt_ids": [1 + number % 300, 2], "completions": [[1 + number % 299, 3]]}]}


def gauges(service: ServiceProcess) -> dict[str, float]:
    return {name: value for name, value in service.metrics().items() if name.startswith("vigor_queued")}


# ------------------------------------------------------------------------------------------------------- SIGTERM

NUM_CALLERS = 24
ENDED = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""What a caller sees whose connection was ended, or never accepted."""


def call_until_refused(service: ServiceProcess, caller: int) -> dict[str, int | None]:
    """Send requests one after another; return their statuses by request id, None for the one that got no answer."""
    statuses: dict[str, int | None] = {}
    accept = LINES_MEDIA_TYPE if caller % 2 else "application/json"
    with httpx.Client(base_url=service.http.base_url, timeout=60) as http:
        while set(statuses.values()) <= {200}:
            request_id = f"{caller}-{len(statuses)}"
            headers = {"Accept": accept, "X-Request-Id": request_id}
            try:
                answer = http.post("/v1/score", json=body(1000 * caller + len(statuses)), headers=headers)
            except ENDED:
                statuses[request_id] = None
            else:
                assert ('"usage"' in answer.text) == (answer.status_code == 200), answer.text
                statuses[request_id] = answer.status_code
    return statuses


@pytest.mark.slow
def test_sigterm_loses_no_request_that_was_admitted(tmp_path: Path) -> None:
    with (
        service_process(tmp_path, *SETTINGS, python=[*PACED, "0.1"]) as service,
        ThreadPoolExecutor(NUM_CALLERS) as pool,
    ):
        calling = [pool.submit(call_until_refused, service, caller) for caller in range(NUM_CALLERS)]
        wait_until(lambda: len(_logged(service.log)) > NUM_CALLERS)
        wait_until(lambda: gauges(service)["vigor_queued_requests"] > NUM_CALLERS / 2)
        logged_before = len(_logged(service.log))
        service.process.send_signal(signal.SIGTERM)
        statuses = {name: status for caller in calling for name, status in caller.result().items()}
        assert service.process.wait(STOP_SECONDS) == 0
    logged = _logged(service.log)
    assert {name: status for name, status in statuses.items() if status is not None} == logged
    assert set(logged.values()) <= {200, 503}
    assert len(logged) - logged_before > NUM_CALLERS / 2


def _logged(log: Path) -> dict[str, int]:
    """The statuses of all score requests that the service took up, by request id."""
    found = re.findall(r"route=/v1/score status=(\d+) .*request_id=(\S+)", log.read_text())
    return {name: int(status) for status, name in found}


# ------------------------------------------------------------------------------------------------------ overload

BATCH_SECONDS = 0.1
OVERLOAD_SECONDS = 4.0
MAX_QUEUED_REQUESTS = 16
GROWTH_BYTES = 100 << 20


async def overload(service: ServiceProcess, num_requests: int) -> tuple[list[httpx.Response], int]:
    """Send requests on a fixed beat, answered or not; return all answers, and the most memory that was seen."""
    pending: list[asyncio.Task[httpx.Response]] = []
    most_bytes = 0
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=service.http.base_url, timeout=60, limits=limits) as http:
        for number in range(num_requests):
            pending.append(asyncio.create_task(http.post("/v1/score", json=body(number))))
            most_bytes = max(most_bytes, resident_bytes(pid=service.process.pid))
            await asyncio.sleep(OVERLOAD_SECONDS / num_requests)
        return await asyncio.gather(*pending), most_bytes


@pytest.mark.slow
def test_ten_times_the_capacity_is_refused_with_retry_after_and_leaves_nothing(tmp_path: Path) -> None:
    capacity = BATCH_REQUESTS / BATCH_SECONDS
    given = (*SETTINGS, "--max-queued-requests", str(MAX_QUEUED_REQUESTS))
    with service_process(tmp_path, *given, python=[*PACED, str(BATCH_SECONDS)]) as service:
        before_bytes = resident_bytes(pid=service.process.pid)
        answers, most_bytes = asyncio.run(overload(service, round(10 * capacity * OVERLOAD_SECONDS)))
        codes = Counter(answer.status_code for answer in answers)
        assert set(codes) == {200, 429}
        assert codes[200] >= MAX_QUEUED_REQUESTS
        assert codes[429] > codes[200]
        assert min(_waits(answers)) >= 1
        assert gauges(service) == {"vigor_queued_requests": 0, "vigor_queued_tokens": 0}
        assert most_bytes - before_bytes < GROWTH_BYTES


def _waits(answers: Sequence[httpx.Response]) -> set[int]:
    """Seconds after which those that were refused may come back; each of them is told."""
    return {int(answer.headers["Retry-After"]) for answer in answers if answer.status_code == 429}
