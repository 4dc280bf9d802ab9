"""The overhead of the service around an engine with a known rate: ``python -m benchmarks.front``.

Utilization: the share of time for which the engine computes while sixteen clients send groups. Liveness: how long ``GET
/healthz`` takes while large requests arrive, and while tens of thousands of their sequences wait. The engine sleeps for
as long as a batch would take at its rate, so the rest of the time is spent by the service itself.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import quantiles
from time import perf_counter, sleep

import httpx
import torch

from benchmarks.instant_service import PYTHON, VOCAB_SIZE
from benchmarks.loads import ON_A_GPU, GroupSizes, body_of
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.service_process import ServiceProcess, service_process
from vigor_service.engine.sequences import TokenSequence

TOKENS_PER_SECOND = 200_000
NUM_CLIENTS = 16
LARGE_GROUPS = 125
"""Number of groups in a large request, which makes 1,000 sequences of 100 tokens each."""
LARGE = GroupSizes(completions=8, prompt_tokens=50, shortest=50, longest=50)
_POLL_SECONDS = 0.005
_BUSY, _BATCHES = 'vigor_engine_busy_seconds_total{engine="0"}', 'vigor_engine_batches_total{engine="0"}'
_UTILIZATION = {
    "batch_tokens": ("tokens of a batch", "{}"),
    "batch_milliseconds": ("a batch takes, ms", "{:.0f}"),
    "batches": ("batches", "{}"),
    "utilization": ("share of the time that the engine computes", "{:.3f}"),
}
_LIVENESS = {
    "phase": ("", "{}"),
    "sequences": ("sequences that wait", "{}"),
    "probes": ("probes", "{}"),
    "median_milliseconds": ("median, ms", "{:.1f}"),
    "p99_milliseconds": ("p99, ms", "{:.1f}"),
    "longest_milliseconds": ("longest, ms", "{:.1f}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        rows = [_utilization(Path(name), tokens, options.seconds) for tokens in options.batch_tokens]
        liveness = _liveness(Path(name), options.requests, options.seconds)
    tables = [Table("utilization", _UTILIZATION, rows), Table("liveness", _LIVENESS, liveness)]
    notes = [
        f"the engine takes {TOKENS_PER_SECOND} tokens per second; clients and service share the machine; nothing is "
        "taken from the cache of scores",
        f"utilization: requests of one group of {ON_A_GPU.usual.describe()}, as token ids, from {NUM_CLIENTS} clients",
        f"liveness: requests of {LARGE_GROUPS} groups of {LARGE.describe()}; a probe every {_POLL_SECONDS * 1000:.0f} "
        "ms on a connection that stays open",
    ]
    report = new_report("The front", "benchmarks.front", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


def _service(directory: Path, *, batch_tokens: int) -> AbstractContextManager[ServiceProcess]:
    own = Path(tempfile.mkdtemp(dir=directory))
    flags = ["--score-cache-entries", "0", "--max-batch-tokens", str(batch_tokens)]
    flags += ["--max-queued-tokens", str(1 << 30), "--tokens-per-second", str(TOKENS_PER_SECOND)]
    return service_process(own, *flags, python=PYTHON, preloaded=False)


# ------------------------------------------------------------------------------------------------ utilization


def _utilization(directory: Path, batch_tokens: int, seconds: float) -> dict[str, Cell]:
    with _service(directory, batch_tokens=batch_tokens) as service, ProcessPoolExecutor(2) as senders:
        sending = [senders.submit(_send, service.url, seed, seconds + 3.0) for seed in range(2)]
        sleep(2.0)  # until all clients send
        before, started = service.metrics(), perf_counter()
        sleep(seconds)
        after, took_seconds = service.metrics(), perf_counter() - started
        for each in sending:
            each.result()
    return {
        "batch_tokens": batch_tokens,
        "batch_milliseconds": 1000 * batch_tokens / TOKENS_PER_SECOND,
        "batches": int(after[_BATCHES] - before[_BATCHES]),
        "utilization": (after[_BUSY] - before[_BUSY]) / took_seconds,
    }


def _send(url: str, seed: int, seconds: float) -> None:
    """Send requests for ``seconds``, from half of the clients."""
    source = random.Random(seed)
    bodies = [_body([ON_A_GPU.usual.group(source, VOCAB_SIZE)]) for _ in range(NUM_CLIENTS // 2)]
    until = perf_counter() + seconds

    def send(body: bytes) -> None:
        with _client(url) as http:
            while perf_counter() < until:
                http.post("/v1/score", content=body).raise_for_status()

    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(send, bodies))


# --------------------------------------------------------------------------------------------------- liveness


def _liveness(directory: Path, num_requests: int, seconds: float) -> list[dict[str, Cell]]:
    num_sequences = num_requests * LARGE_GROUPS * LARGE.completions
    with (
        _service(directory, batch_tokens=16_384) as service,
        ProcessPoolExecutor(1) as senders,
        _client(service.url) as http,
    ):
        _probe(http, 0.5)  # warm-up
        idle = _probe(http, seconds)
        sending = senders.submit(_send_large, service.url, num_requests)
        coming: list[float] = []
        while _unanswered(service) < num_requests:
            coming += _probe(http, 0.2)
        waiting = _probe(http, seconds)
        service.kill()
        sending.exception()  # retrieve the error of a sender, which loses its connections
    return [
        _row("nothing waits", 0, idle),
        _row("requests arrive", num_sequences, coming),
        _row("all of them wait", num_sequences, waiting),
    ]


def _row(phase: str, num_sequences: int, seconds: Sequence[float]) -> dict[str, Cell]:
    percentiles = quantiles(seconds, n=100)
    return {
        "phase": phase,
        "sequences": num_sequences,
        "probes": len(seconds),
        "median_milliseconds": 1000 * percentiles[49],
        "p99_milliseconds": 1000 * percentiles[98],
        "longest_milliseconds": 1000 * max(seconds),
    }


def _probe(http: httpx.Client, seconds: float) -> list[float]:
    """Return how long each probe took, in seconds."""
    found: list[float] = []
    until = perf_counter() + seconds
    while perf_counter() < until:
        started = perf_counter()
        http.get("/healthz").raise_for_status()
        found.append(perf_counter() - started)
        sleep(_POLL_SECONDS)
    return found


def _unanswered(service: ServiceProcess) -> float:
    metrics = service.metrics()
    return metrics["vigor_waiting_requests"] + metrics["vigor_running_requests"]


def _send_large(url: str, num_requests: int) -> None:
    """Send all requests at once; the answers do not matter."""
    source = random.Random(0)
    bodies = [_body([LARGE.group(source, VOCAB_SIZE) for _ in range(LARGE_GROUPS)]) for _ in range(num_requests)]

    def send(body: bytes) -> None:
        with _client(url) as http:
            http.post("/v1/score", content=body)

    with ThreadPoolExecutor(num_requests) as pool:
        list(pool.map(send, bodies))


def _body(groups: Sequence[Sequence[TokenSequence]]) -> bytes:
    return json.dumps({"groups": [body_of(group) for group in groups]}).encode()


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=600, headers={"Content-Type": "application/json"})


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front", description=__doc__)
    parser.add_argument(
        "--batch-tokens",
        type=int,
        nargs="+",
        default=[4_096, 16_384, 65_536],
        help="tokens of a batch (default: 4096 16384 65536)",
    )
    parser.add_argument("--requests", type=int, default=64, help="large requests that wait (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each part (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
