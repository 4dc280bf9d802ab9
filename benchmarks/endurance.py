"""Many mixed requests, one after the other: ``python -m benchmarks.endurance``.

The engine, in a process of its own, scores groups of varying size, lengths and loss masks; so does the real service
over HTTP. Resident memory is sampled meanwhile; after the first hundred requests it must stay flat.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import linear_regression

import torch

from benchmarks.child import in_child
from benchmarks.measuring import resident_bytes
from benchmarks.models import load_subject, save_random_weights
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.service_process import service_process
from vigor_client import VigorClient
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.malloc import tune_heap
from vigor_service.engine.sequences import TokenSequence

Samples = list[tuple[int, int]]  # (requests so far, resident bytes)
_SUMMARY = {
    "path": ("", "{}"),
    "first_mib": ("MiB after {warm} requests", "{:.0f}"),
    "last_mib": ("MiB after {last}", "{:.0f}"),
    "least_mib": ("least in between", "{:.0f}"),
    "most_mib": ("most in between", "{:.0f}"),
    "slope": ("slope, KiB per 100 requests", "{:+.0f}"),
}
_SAMPLES = {
    "requests": ("requests", "{}"),
    "engine_mib": ("engine in process, MiB", "{:.0f}"),
    "http_mib": ("service over HTTP, MiB", "{:.0f}"),
}
_SIZES = "1 to 8 completions of 1 to 192 tokens, three in ten with a random loss mask, after prompts of 4 to 128"


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    in_process = in_child(through_engine, options.model, options.requests, options.every)
    if isinstance(in_process, str):
        raise RuntimeError(in_process)
    over_http = _through_service(options)
    paths = {"engine in process": in_process, "service over HTTP": over_http}
    tables = [
        _summary(paths, options.warm, options.requests),
        Table("samples", _SAMPLES, _sample_rows(in_process, over_http)),
    ]
    notes = [f"{options.model or 'the embedded model'}; {options.requests} requests: {_SIZES}"]
    report = new_report("Endurance", "benchmarks.endurance", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


def mixed_groups(num_groups: int, vocab_size: int) -> Iterator[list[TokenSequence]]:
    """Yield groups of varying size, lengths and masks, the same every time."""
    random = Random(0)
    for _ in range(num_groups):
        prompt = tuple(random.choices(range(vocab_size), k=random.randint(4, 128)))
        yield [_completion_of(prompt, random, vocab_size) for _ in range(random.randint(1, 8))]


def through_engine(model: str | None, num_requests: int, every: int) -> Samples:
    """Score the groups in this process, with the service's heap settings; return samples of its resident memory."""
    tune_heap(short_of_memory=False)
    subject = load_subject(model, dtype="float32", device="cpu")
    engine = Engine(subject.model, name=subject.name)
    groups = mixed_groups(num_requests, subject.model.config.vocab_size)
    return _sampled(groups, engine.score, resident_bytes, every)


def slope_per_request(samples: Samples, warm: int) -> float:
    """Return the slope of a line fitted to the samples after the first ``warm`` requests, in bytes per request."""
    requests, resident = zip(*((n, size) for n, size in samples if n >= warm), strict=True)
    return linear_regression(requests, resident).slope


def _completion_of(prompt: tuple[int, ...], random: Random, vocab_size: int) -> TokenSequence:
    completion = tuple(random.choices(range(vocab_size), k=random.randint(1, 192)))
    if random.random() < 0.7:
        return TokenSequence(prompt, completion)
    mask = [random.random() < 0.8 for _ in completion]
    return TokenSequence(prompt, completion, (*mask[:-1], True))


def _through_service(options: argparse.Namespace) -> Samples:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        arguments: list[str] = []
        if options.model is not None:
            save_random_weights(options.model, directory / "checkpoint")
            arguments = ["--model", str(directory / "checkpoint")]
        with service_process(directory, *arguments) as service:
            pid = service.process.pid
            with VigorClient(str(service.http.base_url)) as client:
                groups = mixed_groups(options.requests, client.model().vocab_size)
                return _sampled(
                    groups, lambda g: client.score([_body(g)]), lambda: resident_bytes(pid=pid), options.every
                )


def _body(group: Sequence[TokenSequence]) -> dict[str, object]:
    completions = [{"ids": list(s.completion_ids), "mask": s.loss_mask and list(map(int, s.loss_mask))} for s in group]
    return {"prompt_ids": list(group[0].prompt_ids), "completions": completions}


def _sampled(
    groups: Iterator[list[TokenSequence]],
    score: Callable[[list[TokenSequence]], object],
    resident: Callable[[], int],
    every: int,
) -> Samples:
    samples: Samples = []
    for number, group in enumerate(groups, start=1):
        score(group)
        if number % every == 0:
            samples.append((number, resident()))
    return samples


def _summary(paths: dict[str, Samples], warm: int, last: int) -> Table:
    columns = {key: (heading.format(warm=warm, last=last), form) for key, (heading, form) in _SUMMARY.items()}
    rows: list[dict[str, Cell]] = []
    for path, samples in paths.items():
        sizes = [size / 2**20 for number, size in samples if number >= warm]
        slope = slope_per_request(samples, warm) * 100 / 2**10
        numbers = (path, sizes[0], sizes[-1], min(sizes), max(sizes), slope)
        rows.append(dict(zip(columns, numbers, strict=True)))
    return Table("resident memory", columns, rows)


def _sample_rows(in_process: Samples, over_http: Samples) -> list[dict[str, Cell]]:
    return [
        {"requests": number, "engine_mib": engine / 2**20, "http_mib": http / 2**20}
        for (number, engine), (_, http) in zip(in_process, over_http, strict=True)
    ]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--model", default="llama-1m", help="a shape of benchmarks/models.py (default: %(default)s)")
    parser.add_argument("--embedded", dest="model", action="store_const", const=None, help="the embedded model instead")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--warm", type=int, default=100, help="requests before memory must be flat")
    parser.add_argument("--every", type=int, default=20, help="requests between two samples")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
