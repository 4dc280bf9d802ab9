"""Scaling over several engines: ``python -m benchmarks.scaling``.

Throughput: the same groups through a service with one engine in its own process, and through services with Ray engines,
alternately. Front: the request rate of one front process with engines that take no time, and the processor time of a
request. Fan-out: the time to bring new weights to all engines, by their number and the bytes. Memory: a process that
has the whole model, and one of two processes that share it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx
import psutil
import torch

from benchmarks.instant_service import PYTHON, VOCAB_SIZE
from benchmarks.loads import ON_A_CPU, GroupSizes, body_of
from benchmarks.measuring import resident_bytes
from benchmarks.models import save_random_weights
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.ray_service import engines
from tests.support.service_process import THE_SERVICE, ServiceProcess, service_process
from vigor_client import VigorClient
from vigor_client.models.embedded import embedded_model_dir
from vigor_client.weight_format.checkpoint_files import checkpoint_tensors

NUM_CLIENTS = 8
NUM_SENDERS = 2
START_SECONDS = 600.0
FRONT_GROUP = GroupSizes(completions=8, prompt_tokens=512, shortest=512, longest=512)
_THROUGHPUT = {
    "engines": ("engines", "{}"),
    "tokens_per_second": ("tokens/s, median", "{:.0f}"),
    "ratio": ("of one engine, median", "{:.2f}"),
    "lowest": ("lowest", "{:.2f}"),
    "highest": ("highest", "{:.2f}"),
}
_FRONT = {
    "engines": ("engines that take no time", "{}"),
    "requests_per_second": ("requests/s", "{:.0f}"),
    "tokens_per_second": ("tokens/s", "{:.0f}"),
    "front_milliseconds": ("processor time of the front for a request, ms", "{:.2f}"),
    "tokens_per_core_second": ("tokens per core-second", "{:.0f}"),
}
_FAN_OUT = {
    "model": ("model", "{}"),
    "mib": ("weights, MiB", "{:.0f}"),
    "engines": ("engines", "{}"),
    "stage_seconds": ("staging during batches, s", "{:.2f}"),
    "swap_seconds": ("swap, s", "{:.2f}"),
    "update_seconds": ("whole update, s", "{:.2f}"),
}
_MEMORY = {
    "model": ("model", "{}"),
    "mib": ("weights, MiB", "{:.0f}"),
    "whole_mib": ("peak of a process with the whole model, MiB", "{:.0f}"),
    "half_mib": ("peak of a process with half of it, MiB", "{:.0f}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tables = [
            Table("throughput", _THROUGHPUT, _throughput(directory, options)),
            Table("front", _FRONT, [_front(directory, number, options.seconds) for number in (1, 2)]),
            Table("fan-out", _FAN_OUT, _fan_out(directory, options)),
            Table("memory", _MEMORY, [_memory(directory, model) for model in _models(directory, options)]),
        ]
    notes = [
        f"throughput: the embedded model in float32, groups of {ON_A_CPU.usual.describe()}, {NUM_CLIENTS} clients; "
        "an engine has one thread; a single one is the service's own process, several are actors of Ray",
        f"front: requests of one group of {FRONT_GROUP.describe()}, as token ids, from {NUM_SENDERS} processes on this "
        "machine; nothing is taken from the cache of scores; a request's tokens are those that an engine would compute",
        "fan-out: full updates in float32 over HTTP on this machine, the median of three; the first of each service is "
        "left out",
        "memory: what is resident at most, from the start of a process to the end of some scores; files that it maps "
        "and its libraries are included",
    ]
    report = new_report("Several engines", "benchmarks.scaling", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


# ------------------------------------------------------------------------------------------------- throughput


def _throughput(directory: Path, options: argparse.Namespace) -> list[dict[str, Cell]]:
    with ExitStack() as stack:
        services = {number: stack.enter_context(_service(directory, number)) for number in options.engines}
        _tokens_per_second(services, -1, 2)  # warm-up
        rounds = [_tokens_per_second(services, number, options.groups) for number in range(options.rounds)]
    one = options.engines[0]
    return [
        {
            "engines": number,
            "tokens_per_second": median(found[number] for found in rounds),
            "ratio": median(found[number] / found[one] for found in rounds),
            "lowest": min(found[number] / found[one] for found in rounds),
            "highest": max(found[number] / found[one] for found in rounds),
        }
        for number in options.engines
    ]


def _service(directory: Path, num_engines: int) -> AbstractContextManager[ServiceProcess]:
    flags = ["--engines", str(num_engines), "--device", "cpu", "--score-cache-entries", "0"]
    flags += ["--max-batch-tokens", str(ON_A_CPU.batch_tokens)]
    return _started(directory / f"engines-{num_engines}", *flags)


def _started(own: Path, *flags: str, python: Sequence[str] = THE_SERVICE) -> AbstractContextManager[ServiceProcess]:
    """Start a service with its files in a separate directory."""
    own.mkdir()
    return service_process(own, *flags, python=python, preloaded=False, start_seconds=START_SECONDS)


def _tokens_per_second(services: Mapping[int, ServiceProcess], number: int, num_groups: int) -> dict[int, float]:
    """Send the same groups through each service, one after the other; return their rates."""
    source = random.Random(number)
    groups = [ON_A_CPU.usual.group(source, 49_152) for _ in range(num_groups)]
    bodies = [body_of(group) for group in groups]
    num_tokens = sum(sequence.num_tokens for group in groups for sequence in group)
    return {engines: num_tokens / _seconds(service.url, bodies) for engines, service in services.items()}


def _seconds(url: str, bodies: Sequence[Mapping[str, object]]) -> float:
    with VigorClient(url, max_retries=0) as client, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        started = perf_counter()
        list(pool.map(lambda body: client.score([body]), bodies))
        return perf_counter() - started


# ------------------------------------------------------------------------------------------------------ front


def _front(directory: Path, num_engines: int, seconds: float) -> dict[str, Cell]:
    flags = ["--engines", str(num_engines), "--score-cache-entries", "0", "--max-batch-tokens", "16384"]
    with _started(directory / f"front-{num_engines}", *flags, python=PYTHON) as service:
        front = psutil.Process(service.process.pid)
        with ProcessPoolExecutor(NUM_SENDERS) as pool:
            list(pool.map(_requests, [service.url] * NUM_SENDERS, range(NUM_SENDERS), [1.0] * NUM_SENDERS))
            before, started = front.cpu_times(), perf_counter()
            counts = pool.map(_requests, [service.url] * NUM_SENDERS, range(NUM_SENDERS), [seconds] * NUM_SENDERS)
            num_requests = sum(counts)
        took_seconds, after = perf_counter() - started, front.cpu_times()
    cpu_seconds = after.user + after.system - before.user - before.system
    num_tokens = num_requests * FRONT_GROUP.completions * (FRONT_GROUP.prompt_tokens + FRONT_GROUP.longest)
    return {
        "engines": num_engines,
        "requests_per_second": num_requests / took_seconds,
        "tokens_per_second": num_tokens / took_seconds,
        "front_milliseconds": 1000 * cpu_seconds / num_requests,
        "tokens_per_core_second": num_tokens / cpu_seconds,
    }


def _requests(url: str, seed: int, seconds: float) -> int:
    """Send requests for ``seconds``, four at a time; return how many were answered."""
    source = random.Random(seed)
    group = FRONT_GROUP.group(source, VOCAB_SIZE)
    content, headers = json.dumps({"groups": [body_of(group)]}).encode(), {"Content-Type": "application/json"}
    until = perf_counter() + seconds

    def send(_sender: int) -> int:
        num_answers = 0
        with httpx.Client(base_url=url, timeout=60, headers=headers) as http:
            while perf_counter() < until:
                http.post("/v1/score", content=content).raise_for_status()
                num_answers += 1
        return num_answers

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(send, range(4)))


# ---------------------------------------------------------------------------------------------------- fan-out


def _fan_out(directory: Path, options: argparse.Namespace) -> list[dict[str, Cell]]:
    return [_updates(directory, model, number) for model in _models(directory, options) for number in options.engines]


def _models(directory: Path, options: argparse.Namespace) -> list[Path]:
    return [embedded_model_dir(), *(_random_model(directory, shape) for shape in options.shapes)]


def _random_model(directory: Path, shape: str) -> Path:
    if not (directory / shape).exists():
        save_random_weights(shape, directory / shape, dtype="float32")
    return directory / shape


def _updates(directory: Path, model: Path, num_engines: int) -> dict[str, Cell]:
    flags = ["--model", str(model), "--engines", str(num_engines), "--device", "cpu", "--max-batch-tokens", "1024"]
    tensors = dict(checkpoint_tensors(model))
    own = directory / f"fan-out-{model.name}-{num_engines}"
    with _started(own, *flags) as service, VigorClient(service.url) as client:
        found = [_update(service, client, tensors, version) for version in range(1, 5)][1:]
    middle = {key: median(each[key] for each in found) for key in found[0]}
    return {"model": _name(model), "mib": _mib(tensors), "engines": num_engines, **middle}


def _name(model: Path) -> str:
    return model.name.split("-Instruct")[0]


def _mib(tensors: Mapping[str, torch.Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors.values()) / 2**20


def _update(
    service: ServiceProcess, client: VigorClient, tensors: Mapping[str, torch.Tensor], version: int
) -> dict[str, float]:
    changed = {name: tensor + version / 1024 for name, tensor in tensors.items()}
    before, started = service.metrics(), perf_counter()
    client.publish_weights(changed, weight_version=version)
    seconds, after = perf_counter() - started, service.metrics()

    def of(phase: str) -> float:
        series = f'vigor_weight_update_seconds_sum{{phase="{phase}"}}'
        return after[series] - before[series]

    return {"stage_seconds": of("stage"), "swap_seconds": of("swap"), "update_seconds": seconds}


# ----------------------------------------------------------------------------------------------------- memory


def _memory(directory: Path, model: Path) -> dict[str, Cell]:
    whole, half = (_peak_mib(directory, model, flag) for flag in ("--engines", "--shard"))
    return {"model": _name(model), "mib": _mib(dict(checkpoint_tensors(model))), "whole_mib": whole, "half_mib": half}


def _peak_mib(directory: Path, model: Path, flag: str) -> float:
    """Return the peak memory of an engine's process, from its start to the end of some scores."""
    flags = ["--model", str(model), flag, "2", "--device", "cpu", "--max-batch-tokens", "1024"]
    with _started(directory / f"memory-{model.name}{flag}", *flags) as service:
        _tokens_per_second({1: service}, 0, 4)
        return max(resident_bytes("VmHWM", pid=engine.pid) for engine in engines(service)) / 2**20


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2], help="numbers of engines (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of throughput (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=6, help="groups of a round (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of load on a front (default: %(default)s)")
    parser.add_argument("--shapes", nargs="*", default=[], help="further models, with random weights, for the fan-out")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
