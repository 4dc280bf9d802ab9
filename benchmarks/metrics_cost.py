"""The cost of metrics: ``python -m benchmarks.metrics_cost``.

The same requests go to two services in one process, which share one engine: one counts everything, the other nothing.
They alternate, and the first one changes from round to round. A ratio is the median of the ratios within each round.

On a noisy machine, where the noise exceeds the cost of metrics, the last table tells more: it times the counting for
the requests of a round, repeated on its own, and a scrape.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any, TypeAlias, cast

import torch

from benchmarks.models import load_subject
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.live_service import LiveService, live_service
from vigor_service.engine.engine import Engine
from vigor_service.observability.metrics import Metrics
from vigor_service.runtime import LoadedModel

NUM_CLIENTS = 4
COMPLETIONS = 8
PROMPT_TOKENS = 32
BATCH_TOKENS = 2048
REPEATS = 5
SCRAPE_INTERVAL_SECONDS = 15
REQUEST_SECONDS = 600.0
_COLUMNS = {
    "round": ("round", "{}"),
    "seconds": ("with metrics, s", "{:.3f}"),
    "silent_seconds": ("without, s", "{:.3f}"),
    "ratio": ("without / with", "{:.4f}"),
    "cpu_seconds": ("with metrics, processor s", "{:.3f}"),
    "silent_cpu_seconds": ("without, processor s", "{:.3f}"),
    "cpu_ratio": ("without / with", "{:.4f}"),
    "microseconds": ("µs per request", "{:.0f}"),
}


_Call: TypeAlias = tuple[str | tuple[object, ...], ...]
_ALONE = {
    "model": ("model", "{}"),
    "calls": ("calls per request", "{:.0f}"),
    "microseconds": ("of a request, µs", "{:.0f}"),
    "milliseconds": ("the whole request without metrics, processor ms", "{:.1f}"),
    "share": ("share", "{:.2f} %"),
    "scrape_milliseconds": ("of a scrape, ms", "{:.1f}"),
    "scrape_share": (f"share, of {SCRAPE_INTERVAL_SECONDS} s", "{:.2f} %"),
}


class _Nothing:
    """Stands in for metrics: accepts every attribute and call, and does nothing."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *_arguments: object, **_named: object) -> _Nothing:
        return self


class _Tracer:
    """Records the use of metrics: names that are looked up, and arguments of calls."""

    def __init__(self, calls: list[_Call] | None = None, path: _Call = ()) -> None:
        self.calls: list[_Call] = [] if calls is None else calls
        self._path = path

    def __getattr__(self, name: str) -> _Tracer:
        return _Tracer(self.calls, (*self._path, name))

    def __call__(self, *arguments: object, **_named: object) -> _Tracer:
        call = (*self._path, arguments)
        if self._path[-1] != "labels":  # it is part of the call that follows
            self.calls.append(call)
        return _Tracer(self.calls, call)


@dataclass(frozen=True)
class _Cost:
    seconds: float
    cpu_seconds: float


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    measured = [_measure(model, options.rounds, options.requests, options.tokens) for model in options.models]
    tables = [table for table, _ in measured] + [Table("counting alone", _ALONE, [row for _, row in measured])]
    notes = [
        f"float32; {options.requests} requests a round from {NUM_CLIENTS} clients, each a group of {COMPLETIONS} "
        f"completions of {options.tokens // 2} to {options.tokens} tokens after a prompt of {PROMPT_TOKENS}; "
        "clients and services share one process, nothing is taken from the cache of scores"
    ]
    report = new_report("Metrics", "benchmarks.metrics_cost", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


def _measure(model: str, num_rounds: int, num_requests: int, num_tokens: int) -> tuple[Table, dict[str, Cell]]:
    subject = load_subject(None if model == "embedded" else model, dtype="float32", device="cpu")
    engine, source = Engine(subject.model, name=subject.name), random.Random(0)
    with _service(engine, Metrics()) as counting, _service(engine, cast("Metrics", _Nothing())) as silent:
        for service in (counting, silent):  # warm-up of allocators, connections and code paths
            _cost(service, [_body(subject.ids, source, num_tokens) for _ in range(num_requests)])
        rows = [
            _round(counting, silent, [_body(subject.ids, source, num_tokens) for _ in range(num_requests)], number)
            for number in range(num_rounds)
        ]
        middle = {key: median(float(row[key] or 0) for row in rows) for key in _COLUMNS if key != "round"}
        scrape_seconds = min(_seconds(counting.runtime.metrics.render) for _ in range(REPEATS))
        counted = _counted(engine, [_body(subject.ids, source, num_tokens) for _ in range(num_requests)])
    microseconds = 1e6 * min(_seconds(partial(_count_again, counted, Metrics())) for _ in range(REPEATS)) / num_requests
    request_microseconds = 1e6 * middle["silent_cpu_seconds"] / num_requests
    alone: dict[str, Cell] = {
        "model": model,
        "calls": len(counted) / num_requests,
        "microseconds": microseconds,
        "milliseconds": request_microseconds / 1e3,
        "share": 100 * microseconds / request_microseconds,
        "scrape_milliseconds": 1e3 * scrape_seconds,
        "scrape_share": 100 * scrape_seconds / SCRAPE_INTERVAL_SECONDS,
    }
    return Table(model, _COLUMNS, [*rows, {"round": "median", **middle}]), alone


def _counted(engine: Engine, bodies: Sequence[dict[str, object]]) -> list[_Call]:
    """Return the calls by which a service counts these requests, without scrapes."""
    tracer = _Tracer()
    with _service(engine, cast("Metrics", tracer)) as service:
        tracer.calls.clear()
        for body in bodies:
            _score(service, body)
        return list(tracer.calls)


def _count_again(calls: Sequence[_Call], metrics: Metrics) -> None:
    for call in calls:
        found: Any = metrics
        for step in call:
            found = getattr(found, step) if isinstance(step, str) else found(*step)


def _seconds(work: Callable[[], object]) -> float:
    """Return the processor time of this thread for the work."""
    started = thread_time()
    work()
    return thread_time() - started


@contextmanager
def _service(engine: Engine, metrics: Metrics) -> Iterator[LiveService]:
    with (
        tempfile.TemporaryDirectory() as staging,
        live_service(
            Path(staging), load_model=lambda: LoadedModel(engine, None), metrics=metrics, max_batch_tokens=BATCH_TOKENS
        ) as service,
    ):
        yield service


def _round(
    counting: LiveService, silent: LiveService, bodies: Sequence[dict[str, object]], number: int
) -> dict[str, Cell]:
    if number % 2:
        without, with_ = _cost(silent, bodies), _cost(counting, bodies)
    else:
        with_, without = _cost(counting, bodies), _cost(silent, bodies)
    return {
        "round": number + 1,
        "seconds": with_.seconds,
        "silent_seconds": without.seconds,
        "ratio": without.seconds / with_.seconds,
        "cpu_seconds": with_.cpu_seconds,
        "silent_cpu_seconds": without.cpu_seconds,
        "cpu_ratio": without.cpu_seconds / with_.cpu_seconds,
        "microseconds": 1e6 * (with_.cpu_seconds - without.cpu_seconds) / len(bodies),
    }


def _cost(service: LiveService, bodies: Sequence[dict[str, object]]) -> _Cost:
    """Send the bodies and return the time and processor time they took."""
    started, cpu_started = perf_counter(), process_time()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(partial(_score, service), bodies))
    return _Cost(perf_counter() - started, process_time() - cpu_started)


def _score(service: LiveService, body: dict[str, object]) -> None:
    service.http.post("/v1/score", json=body, timeout=REQUEST_SECONDS).raise_for_status()


def _body(ids: Sequence[int], source: random.Random, num_tokens: int) -> dict[str, object]:
    def cut(length: int) -> list[int]:
        first = source.randrange(len(ids) - length)
        return list(ids[first : first + length])

    completions = [cut(source.randint(num_tokens // 2, num_tokens)) for _ in range(COMPLETIONS)]
    return {"groups": [{"prompt_ids": cut(PROMPT_TOKENS), "completions": completions}]}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics_cost", description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["llama-26m", "tiny"], help="shapes of benchmarks/models.py, or embedded"
    )
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=12, help="in a round (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of the longest completion (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
