"""The service under load: ``python -m benchmarks.serving``.

Throughput: sixteen clients send groups at the same time, compared with the engine alone on the same groups in the same
batches. Fairness: ten small requests arrive after a huge one. Overload: ten times as many requests as the service can
answer, sent at a fixed rate, whether or not earlier ones were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx
import torch

from benchmarks.loads import ON_A_CPU, ON_A_GPU, Load
from benchmarks.measuring import default_device, resident_bytes
from benchmarks.models import save_random_weights
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.service_process import ServiceProcess, service_process
from tests.support.waiting import wait_until
from vigor_client import VigorClient
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import load_policy
from vigor_service.engine.sequences import TokenSequence
from vigor_service.scheduling.fair_queue import Pool

NUM_CLIENTS = 16
OVERLOAD = 10
_THROUGHPUT = {
    "round": ("round", "{}"),
    "tokens": ("tokens", "{}"),
    "engine_tokens_per_second": ("engine alone, tokens/s", "{:.0f}"),
    "service_tokens_per_second": ("sixteen clients, tokens/s", "{:.0f}"),
    "ratio": ("clients / engine", "{:.3f}"),
}
_FAIRNESS = {
    "alone_seconds": ("a small request alone, s", "{:.2f}"),
    "median_seconds": ("ten behind a huge one, median s", "{:.2f}"),
    "longest_seconds": ("longest (p99), s", "{:.2f}"),
    "huge_seconds": ("the huge one, s", "{:.1f}"),
}
_OVERLOAD = {
    "seconds": ("seconds", "{:.0f}"),
    "capacity": ("can answer per second", "{:.1f}"),
    "rate": ("sent per second", "{:.1f}"),
    "sent": ("sent", "{}"),
    "ok": ("answered 200", "{}"),
    "refused": ("answered 429", "{}"),
    "without_retry_after": ("429 without Retry-After", "{}"),
    "other": ("other answers", "{}"),
    "memory_mb": ("increase of memory, MB", "{:.0f}"),
    "queued": ("queued requests at the end", "{:.0f}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    device = torch.device(options.device)
    load = ON_A_GPU if device.type == "cuda" else ON_A_CPU
    with tempfile.TemporaryDirectory() as name:
        tables = _tables(options, load, Path(name))
    notes = [
        f"{options.model or 'the embedded model'} in {load.dtype}; clients, service and engine share the machine; "
        f"batches of up to {load.batch_tokens} tokens, nothing is taken from the cache of scores",
        f"throughput: groups of {load.usual.describe()}; fairness: one request of {options.huge} such groups, then ten "
        f"of one group of {load.small.describe()}; overload: requests like these ten, {load.queued_tokens} tokens may "
        "wait",
    ]
    report = new_report("Serving", "benchmarks.serving", arguments, device, tables, notes)
    finish(report, options.out)
    return report


def _tables(options: argparse.Namespace, load: Load, directory: Path) -> list[Table]:
    model = [] if options.model is None else ["--model", str(_checkpoint(options.model, load.dtype, directory))]
    policy = load_policy(model[1] if model else None, dtype=load.dtype, device=options.device)
    engine = Engine(policy.model, name=policy.name)
    given = [*model, "--device", options.device, "--dtype", load.dtype]
    given += ["--max-batch-tokens", str(load.batch_tokens), "--score-cache-entries", "0"]
    with service_process(directory, *given, num_threads=torch.get_num_threads()) as service:
        _throughput(engine, service, load, -1, 2)  # warm-up
        throughput = [_throughput(engine, service, load, number, options.groups) for number in range(options.rounds)]
        fairness = _fairness(service, load, engine.info.vocab_size, options.huge)
    given += ["--max-queued-tokens", str(load.queued_tokens)]
    with service_process(directory, *given, num_threads=torch.get_num_threads()) as service:
        overload = asyncio.run(_overload(service, load, engine.info.vocab_size, options.seconds))
    middle = {key: median(float(row[key] or 0) for row in throughput) for key in _THROUGHPUT if key != "round"}
    return [
        Table("throughput", _THROUGHPUT, [*throughput, {"round": "median", **middle, "tokens": None}]),
        Table("fairness", _FAIRNESS, [fairness]),
        Table("overload", _OVERLOAD, [overload]),
    ]


def _checkpoint(shape: str, dtype: str, directory: Path) -> Path:
    save_random_weights(shape, directory / "checkpoint", dtype=dtype)
    return directory / "checkpoint"


def _throughput(engine: Engine, service: ServiceProcess, load: Load, number: int, num_groups: int) -> dict[str, Cell]:
    source = random.Random(number)
    groups = [load.usual.group(source, engine.info.vocab_size) for _ in range(num_groups)]
    num_tokens = sum(sequence.num_tokens for group in groups for sequence in group)
    engine_seconds = _engine_seconds(engine, groups, load.batch_tokens)
    service_seconds = _clients_seconds(service, groups)
    return {
        "round": number + 1,
        "tokens": num_tokens,
        "engine_tokens_per_second": num_tokens / engine_seconds,
        "service_tokens_per_second": num_tokens / service_seconds,
        "ratio": engine_seconds / service_seconds,
    }


def _engine_seconds(engine: Engine, groups: Sequence[Sequence[TokenSequence]], batch_tokens: int) -> float:
    pool = Pool[str]()
    pool.add("all", [sequence for group in groups for sequence in group])
    started = perf_counter()
    while pool:
        engine.score(list(pool.take_batch(batch_tokens)))
    return perf_counter() - started


def _clients_seconds(service: ServiceProcess, groups: Sequence[Sequence[TokenSequence]]) -> float:
    url = str(service.http.base_url)

    def send(client: VigorClient, share: Sequence[Sequence[TokenSequence]]) -> None:
        for group in share:
            client.score([_body(group)])

    with ExitStack() as stack, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [stack.enter_context(VigorClient(url, max_retries=0)) for _ in range(NUM_CLIENTS)]
        started = perf_counter()
        list(pool.map(send, clients, [groups[first::NUM_CLIENTS] for first in range(NUM_CLIENTS)]))
        return perf_counter() - started


def _fairness(service: ServiceProcess, load: Load, vocab_size: int, num_groups: int) -> dict[str, Cell]:
    source = random.Random(99)
    huge = [_body(load.usual.group(source, vocab_size)) for _ in range(num_groups)]
    small = [_body(load.small.group(source, vocab_size)) for _ in range(15)]
    with VigorClient(str(service.http.base_url), max_retries=0) as client, ThreadPoolExecutor(11) as pool:
        alone = [_seconds(client, [group]) for group in small[:5]]
        running = pool.submit(_seconds, client, huge)
        wait_until(lambda: client.metrics()["vigor_queued_requests"] == 1)
        behind = list(pool.map(lambda group: _seconds(client, [group]), small[5:]))
        return {
            "alone_seconds": median(alone),
            "median_seconds": median(behind),
            "longest_seconds": max(behind),
            "huge_seconds": running.result(),
        }


async def _overload(service: ServiceProcess, load: Load, vocab_size: int, seconds: float) -> dict[str, Cell]:
    source, pid = random.Random(7), service.process.pid
    capacity = _capacity(service, [_body(load.small.group(source, vocab_size)) for _ in range(40)])
    beat_seconds = 1 / (OVERLOAD * capacity)
    bodies = [_encoded(load.small.group(source, vocab_size)) for _ in range(ceil(seconds / beat_seconds))]
    before_bytes = most_bytes = resident_bytes(pid=pid)
    limits = httpx.Limits(max_connections=None)
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=service.http.base_url, timeout=120, limits=limits, headers=headers) as http:
        pending: list[asyncio.Task[httpx.Response]] = []
        started = perf_counter()
        for number, body in enumerate(bodies):
            await asyncio.sleep(started + number * beat_seconds - perf_counter())
            pending.append(asyncio.create_task(http.post("/v1/score", content=body)))
            most_bytes = max(most_bytes, resident_bytes(pid=pid))
        sending_seconds = perf_counter() - started
        answers = await asyncio.gather(*pending)
    codes = Counter(answer.status_code for answer in answers)
    return {
        "seconds": sending_seconds,
        "capacity": capacity,
        "rate": len(answers) / sending_seconds,
        "sent": len(answers),
        "ok": codes[200],
        "refused": codes[429],
        "without_retry_after": sum(a.status_code == 429 and "Retry-After" not in a.headers for a in answers),
        "other": len(answers) - codes[200] - codes[429],
        "memory_mb": (most_bytes - before_bytes) / 1e6,
        "queued": service.metrics()["vigor_queued_requests"],
    }


def _capacity(service: ServiceProcess, groups: Sequence[dict[str, object]]) -> float:
    """Return how many requests of one group are answered per second while the queue is full."""
    with VigorClient(str(service.http.base_url)) as client, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        started = perf_counter()
        list(pool.map(lambda group: client.score([group]), groups))
        return len(groups) / (perf_counter() - started)


def _seconds(client: VigorClient, groups: Sequence[dict[str, object]]) -> float:
    started = perf_counter()
    client.score(groups)
    return perf_counter() - started


def _body(group: Sequence[TokenSequence]) -> dict[str, object]:
    completions = [list(sequence.completion_ids) for sequence in group]
    return {"prompt_ids": list(group[0].prompt_ids), "completions": completions}


def _encoded(group: Sequence[TokenSequence]) -> bytes:
    return json.dumps({"groups": [_body(group)]}).encode()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", help="a shape of benchmarks/models.py (default: the embedded model)")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--rounds", type=int, default=3, help="of throughput (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=16, help="in a round (default: %(default)s)")
    parser.add_argument("--huge", type=int, default=8, help="groups of the huge request (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="of overload (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.json and STEM.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
