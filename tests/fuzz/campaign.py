"""Requests one after the other, each followed by a look at the service."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.bodies import VALID
from tests.fuzz.requests import requests
from tests.fuzz.wire import RawRequest, send
from tests.support.process_account import main_thread_seconds, peak_bytes, reset_peak
from tests.support.service_process import ServiceProcess

MOST_LOOP_SECONDS = 0.1  # of processor time, until /healthz answers
MOST_GROWTH_MIB = 256.0  # of one request, of which no body is above the service's limit
LATER = (503, 504)
_EXAMPLES_AT_ONCE = 200
_MORE_TRIES = 2


@dataclass
class Tally:
    """What was seen: answers by status, and the most that a request has cost."""

    statuses: Counter[int | None] = field(default_factory=Counter)
    most_loop_seconds: float = 0.0
    most_growth_mib: float = 0.0


class BrokenPromiseError(AssertionError):
    """A request did what none may do."""


def attack(service: ServiceProcess, key: str, *, seconds: float, first_seed: int, tally: Tally) -> int:
    """Send requests until the time is over; return how many. The first that breaks a promise ends it, made small.

    Raises:
        BrokenPromiseError: by the least request that hypothesis found to do so.
    """
    end, number = monotonic() + seconds, first_seed
    while monotonic() < end:
        _chunk(service, key, end, number, tally)
        number += 1
    return tally.statuses.total()


def _chunk(service: ServiceProcess, key: str, end: float, number: int, tally: Tally) -> None:
    @seed(number)
    @settings(
        max_examples=_EXAMPLES_AT_ONCE,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        phases=[Phase.generate, Phase.shrink],
    )
    @given(requests(key, _open_update(service, number)))
    def run(request: RawRequest) -> None:
        if monotonic() < end:
            try_one(service, request, tally)

    run()


def _open_update(service: ServiceProcess, number: int) -> str:
    """Return the id of an update that waits for its file; "none" while another one is open."""
    body = {**VALID["POST", "/v1/weights/updates"], "weight_version": 10**6 + number}
    opened = service.http.post("/v1/weights/updates", json=body)
    return opened.json().get("update_id", "none")


def try_one(service: ServiceProcess, request: RawRequest, tally: Tally) -> None:
    """Send the request and hold the service to its promises.

    One that seems to cost too much is sent again: what the service does from time to time is not its doing.

    Raises:
        BrokenPromiseError: it did not keep one.
    """
    status, loop_seconds, growth_mib = _cost(service, request)
    for _ in range(_MORE_TRIES):
        if loop_seconds > MOST_LOOP_SECONDS or growth_mib > MOST_GROWTH_MIB:
            status, *again = _cost(service, request)
            loop_seconds, growth_mib = min(loop_seconds, again[0]), min(growth_mib, again[1])
    tally.statuses[status] += 1
    tally.most_loop_seconds = max(tally.most_loop_seconds, loop_seconds)
    tally.most_growth_mib = max(tally.most_growth_mib, growth_mib)
    if status is not None and status >= 500 and status not in LATER:
        raise BrokenPromiseError(f"status {status}")
    if growth_mib > MOST_GROWTH_MIB:
        raise BrokenPromiseError(f"memory grew by {growth_mib:.0f} MiB")
    if loop_seconds > MOST_LOOP_SECONDS:
        raise BrokenPromiseError(f"the event loop ran for {loop_seconds:.3f} s")


def _cost(service: ServiceProcess, request: RawRequest) -> tuple[int | None, float, float]:
    """Return the answer's status, the event loop's processor seconds until /healthz answers, and MiB of growth."""
    pid = service.process.pid
    before_bytes, before_seconds = reset_peak(pid), main_thread_seconds(pid)
    try:
        status = send(service.http.base_url.port or 0, bytes(request))
    except TimeoutError as error:
        raise BrokenPromiseError(f"neither an answer nor the end of the connection: {str(request)[:2000]}") from error
    if service.http.get("/healthz").status_code != 200:
        raise BrokenPromiseError("/healthz is not 200")
    return status, main_thread_seconds(pid) - before_seconds, (peak_bytes(pid) - before_bytes) / 2**20


def table(tally: Tally) -> str:
    """Return what was seen, as JSON."""
    statuses = {str(status): count for status, count in sorted(tally.statuses.items(), key=str)}
    return json.dumps(
        {
            "requests": tally.statuses.total(),
            "statuses": statuses,
            "most_loop_ms": round(tally.most_loop_seconds * 1000, 1),
            "most_growth_mib": round(tally.most_growth_mib, 1),
        }
    )
