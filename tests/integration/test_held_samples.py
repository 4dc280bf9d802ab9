"""What the service process holds of samples whose groups gather, by the operating system's account."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.measuring import resident_bytes
from tests.support.service_process import ServiceProcess, service_process
from tests.support.waiting import wait_until

NUM_SAMPLES = 2
GROWTH_BYTES = 128 << 20
"""Below what two of these bodies are, 14 MiB each, and 100 MiB as Python objects."""
IGNORED = f"[{','.join(['1000'] * 3_000_000)}]"


def _slime(service: ServiceProcess, number: int) -> httpx.Response:
    given = json.dumps({"prompt": "a", "response": str(number)})
    return _send(service, "/slime/reward?group_size=8", f'{given[:-1]}, "label": {IGNORED}}}')


def _openrlhf(service: ServiceProcess, number: int) -> httpx.Response:
    given = json.dumps({"query": [f"b {number}"], "prompts": ["b"]})
    return _send(service, "/openrlhf/get_reward?group_size=8", f'{given[:-1]}, "labels": {IGNORED}}}')


def _send(service: ServiceProcess, path: str, body: str) -> httpx.Response:
    return service.http.post(path, content=body, headers={"Content-Type": "application/json"})


def test_fields_that_are_ignored_are_not_held_while_groups_gather(tmp_path: Path) -> None:
    with (
        service_process(tmp_path, python=["-m", "tests.support.paced_service", "0"]) as service,
        ThreadPoolExecutor(2 * NUM_SAMPLES) as pool,
    ):
        before_bytes = resident_bytes(pid=service.process.pid)
        pending = [pool.submit(send, service, n) for n in range(NUM_SAMPLES) for send in (_slime, _openrlhf)]
        wait_until(lambda: service.metrics()["vigor_gathering_samples"] == len(pending), deadline_seconds=60)
        grown_bytes = resident_bytes(pid=service.process.pid) - before_bytes
        assert service.stop() == 0
        assert {answer.result().status_code for answer in pending} == {200, 503}
    assert grown_bytes < GROWTH_BYTES
