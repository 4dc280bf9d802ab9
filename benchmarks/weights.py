"""A full update of two gigabytes, compared with a bare copy of as many bytes: ``python -m benchmarks.weights``.

In each round a process sends the bytes through a socket to another one, which writes them to a file; then the client
publishes all weights of a model to the real service. Meanwhile the service's memory is watched, and ``/healthz`` is
requested every 20 milliseconds. In a last round one short group is also scored again and again.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import httpx
import torch

from benchmarks.measuring import resident_bytes
from benchmarks.models import save_random_weights
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.service_process import ServiceProcess, service_process
from vigor_client import PublishResult, VigorClient

_CHUNK_BYTES = 1 << 20
PAUSE_SECONDS = 10.0
"""Pause before each copy and upload. The host of a virtual machine takes free memory back and returns it at the first
touch, which takes longer than copying. Without a pause, one of the two would reuse memory that the other just freed."""
_SENDER = """
import socket, sys
data, left = memoryview(bytes(1 << 20)), int(sys.argv[2])
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    while left:
        connection.sendall(data[:left])
        left -= min(left, len(data))
"""
_GROUP = {"prompt_ids": [1, 2], "completions": [[3, 4, 5]]}
_COLUMNS = {
    "round": ("round", "{}"),
    "copy_mb_per_second": ("bare copy, MB/s", "{:.0f}"),
    "upload_mb_per_second": ("upload, MB/s", "{:.0f}"),
    "ratio": ("upload / copy", "{:.0%}"),
    "plan_seconds": ("hash before sending, s", "{:.2f}"),
    "send_seconds": ("send, s", "{:.2f}"),
    "verify_seconds": ("verify, s", "{:.2f}"),
    "swap_seconds": ("swap, s", "{:.2f}"),
    "memory_mb": ("increase of the service's memory, MB", "{:.0f}"),
    "healthz_p99_ms": ("/healthz p99, ms", "{:.1f}"),
    "healthz_max_ms": ("longest, ms", "{:.1f}"),
}
_SCORING = _COLUMNS | {
    "score_before_seconds": ("a score before, s", "{:.2f}"),
    "score_meanwhile_seconds": ("median meanwhile, s", "{:.2f}"),
    "longest_score_seconds": ("longest meanwhile, s", "{:.2f}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        model = save_random_weights(options.model, directory / "checkpoint")
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        model_options = ["--model", str(directory / "checkpoint"), "--dtype", "float32"]
        given = [*model_options, "--max-batch-tokens", "1024", "--score-cache-entries", "0"]
        with service_process(directory, *given) as service:
            bench = _Bench(service, directory / "copy", tensors, options.pause_seconds)
            rounds = [bench.round(number, scoring=False) for number in range(1, options.rounds + 1)]
            scored = bench.round(options.rounds + 1, scoring=True)
    tables = [Table("rounds", _COLUMNS, [*rounds, _medians(rounds)]), Table("while scoring", _SCORING, [scored])]
    notes = [
        f"{options.model} in float32, random weights, in files of up to 1 GiB; one machine",
        "memory is what the service's process has for itself (RssAnon), without pages of files that it maps; it, "
        "/healthz and scores are watched from the first request to the answer of the commit. What is loaded from a "
        "checkpoint is mapped from its file: with the first swap these pages become the process's own",
    ]
    report = new_report("Publishing weights", "benchmarks.weights", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


def _medians(rows: Sequence[dict[str, Cell]]) -> dict[str, Cell]:
    middle = {key: median(float(row[key] or 0) for row in rows) for key in _COLUMNS if key != "round"}
    return {"round": "median", **middle}


class _Bench:
    """A service, and the weights that are published to it repeatedly, with other values each time."""

    def __init__(
        self, service: ServiceProcess, copy: Path, tensors: Mapping[str, torch.Tensor], pause_seconds: float
    ) -> None:
        self._service = service
        self._copy = copy
        self._tensors = tensors
        self._pause_seconds = pause_seconds
        self._num_bytes = sum(tensor.nbytes for tensor in tensors.values())

    def round(self, number: int, *, scoring: bool) -> dict[str, Cell]:
        for tensor in self._tensors.values():
            tensor.neg_()
        score_before_seconds = median(_asked(lambda: _score(self._service)) for _ in range(5))
        before_bytes = resident_bytes("RssAnon", pid=self._service.process.pid)
        sleep(self._pause_seconds)
        copy_seconds = bare_copy_seconds(self._copy, self._num_bytes)
        sleep(self._pause_seconds)
        with _watched(self._service, scoring=scoring) as seen:
            published = _publish(self._service, self._tensors, number)
        copy, upload = self._num_bytes / copy_seconds / 1e6, published.sent_bytes / published.send_seconds / 1e6
        healthz_ms = [seconds * 1000 for seconds in seen.healthz_seconds]
        return {
            "round": number,
            "copy_mb_per_second": copy,
            "upload_mb_per_second": upload,
            "ratio": upload / copy,
            "plan_seconds": published.plan_seconds,
            "send_seconds": published.send_seconds,
            "verify_seconds": published.verify_seconds,
            "swap_seconds": published.swap_seconds,
            "memory_mb": (max(seen.memory_bytes) - before_bytes) / 1e6,
            "healthz_p99_ms": sorted(healthz_ms)[ceil(0.99 * len(healthz_ms)) - 1],
            "healthz_max_ms": max(healthz_ms),
            "score_before_seconds": score_before_seconds,
            "score_meanwhile_seconds": median(seen.score_seconds) if scoring else None,
            "longest_score_seconds": max(seen.score_seconds) if scoring else None,
        }


def bare_copy_seconds(path: Path, num_bytes: int) -> float:
    """Return the seconds for another process to send this number of bytes through a socket to a file of this one."""
    buffer = bytearray(_CHUNK_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener, path.open("wb", buffering=0) as file:
        command = [sys.executable, "-c", _SENDER, str(listener.getsockname()[1]), str(num_bytes)]
        sender = subprocess.Popen(command)
        connection, _ = listener.accept()
        with connection:
            started = perf_counter()
            while received := connection.recv_into(buffer):
                file.write(memoryview(buffer)[:received])
            seconds = perf_counter() - started
        sender.wait()
    path.unlink()
    return seconds


class _Seen:
    def __init__(self) -> None:
        self.memory_bytes: list[int] = []
        self.healthz_seconds: list[float] = []
        self.score_seconds: list[float] = []


@contextmanager
def _watched(service: ServiceProcess, *, scoring: bool) -> Iterator[_Seen]:
    """Watch the service until the block ends, with one thread for each kind of observation."""
    seen, ends = _Seen(), threading.Event()
    watches: list[tuple[Callable[[], None], float]] = [
        (lambda: seen.memory_bytes.append(resident_bytes("RssAnon", pid=service.process.pid)), 0.02),
        (lambda: seen.healthz_seconds.append(_asked(lambda: _healthz(service))), 0.02),
    ]
    if scoring:
        watches.append((lambda: seen.score_seconds.append(_asked(lambda: _score(service))), 0.0))
    threads = [threading.Thread(target=_until, args=(ends, *watch)) for watch in watches]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def _until(ends: threading.Event, look: Callable[[], None], pause_seconds: float) -> None:
    look()
    while not ends.wait(pause_seconds):
        look()


def _asked(question: Callable[[], httpx.Response]) -> float:
    started = perf_counter()
    question().raise_for_status()
    return perf_counter() - started


def _healthz(service: ServiceProcess) -> httpx.Response:
    return service.http.get("/healthz")


def _score(service: ServiceProcess) -> httpx.Response:
    return service.http.post("/v1/score", json={"groups": [_GROUP]})


def _publish(service: ServiceProcess, tensors: Mapping[str, torch.Tensor], version: int) -> PublishResult:
    with VigorClient(str(service.http.base_url)) as client:
        return client.publish_weights(tensors, weight_version=version)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument(
        "--model", default="qwen2.5-0.5b", help="a shape of benchmarks/models.py (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pause-seconds", type=float, default=PAUSE_SECONDS, help="before each copy and upload (default: %(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="on the disk to be measured (default: the temporary directory)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
