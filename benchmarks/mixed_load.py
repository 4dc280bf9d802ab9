"""An hour of load from all kinds of callers at the same time: ``python -m benchmarks.mixed_load``.

200 callers use a service with a tiny model. Most send valid requests; others leave, send junk, abandon uploads, or
publish weights. The resources of the process must stay flat: descriptors, threads, memory, and disk.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

import httpx
import torch

from benchmarks.measuring import resident_bytes
from benchmarks.mixed_callers import (
    Role,
    Tally,
    abandon,
    adapt,
    leave,
    publisher,
    score_ids,
    score_text,
    send_junk,
    send_samples,
)
from benchmarks.report import Cell, Report, Table, finish, new_report
from tests.support.process_account import num_descriptors, num_threads
from tests.support.service_process import ServiceProcess, service_process
from tests.support.tiny_models import save_tiny_checkpoint

LATER = (503, 504)
_SHARES = {score_ids: 90, score_text: 40, send_samples: 24, adapt: 16, leave: 14, send_junk: 10, abandon: 5}
_SAMPLES = {
    "minutes": ("minutes", "{:.0f}"),
    "requests": ("answers so far", "{}"),
    "faults": ("of them 5xx, without 503 and 504", "{}"),
    "version": ("weight version", "{}"),
    "descriptors": ("descriptors", "{}"),
    "threads": ("threads", "{}"),
    "resident_mib": ("resident, MiB", "{:.0f}"),
    "disk_mib": ("on disk, MiB", "{:.1f}"),
}
_ANSWERS = {"role": ("caller", "{}"), "status": ("status", "{}"), "count": ("answers", "{}")}


def main(arguments: Sequence[str]) -> Report:
    """Run the load, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoint = save_tiny_checkpoint(directory / "model")
        flags = ["--model", str(checkpoint), "--state-dir", str(directory / "state"), "--group-timeout-seconds", "5"]
        with service_process(directory, *flags) as service:
            samples, tally = asyncio.run(_load(service, directory / "state", checkpoint, options))
    answers: list[dict[str, Cell]] = [
        {"role": role, "status": status or "left or closed", "count": count}
        for (role, status), count in sorted(tally.items())
    ]
    tables = [Table("what the process holds", _SAMPLES, samples), Table("answers", _ANSWERS, answers)]
    notes = [f"{options.callers} callers for {options.minutes:g} minutes; a tiny model of random weights"]
    report = new_report("Mixed load", "benchmarks.mixed_load", arguments, torch.device("cpu"), tables, notes)
    finish(report, options.out)
    return report


async def _load(
    service: ServiceProcess, state: Path, checkpoint: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Cell]], Tally]:
    tally: Tally = Counter()
    began, samples = monotonic(), list[dict[str, Cell]]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.callers)
    async with (
        httpx.AsyncClient(base_url=service.http.base_url, limits=limits, timeout=120) as http,
        asyncio.TaskGroup() as group,
    ):
        tasks = [
            group.create_task(_go_on(role, http, random.Random(number), tally))
            for number, role in enumerate(_roles(options.callers, publisher(checkpoint)))
        ]
        while (minutes := (monotonic() - began) / 60) < options.minutes:
            await asyncio.sleep(min(options.every * 60, max(0.0, options.minutes * 60 - minutes * 60)))
            samples.append(await _sample(service, http, state, (monotonic() - began) / 60, tally))
            print(samples[-1], file=sys.stderr)
        for task in tasks:
            task.cancel()
    return samples, tally


async def _go_on(role: Role, http: httpx.AsyncClient, source: random.Random, tally: Tally) -> None:
    while True:
        try:
            await role(http, source, tally)
        except httpx.HTTPError:  # failed requests are counted
            await asyncio.sleep(1)


def _roles(num_callers: int, publish: Role) -> list[Role]:
    shares: Mapping[Role, int] = {**_SHARES, publish: 1}
    return [role for role, share in shares.items() for _ in range(max(1, round(share * num_callers / 200)))]


async def _sample(
    service: ServiceProcess, http: httpx.AsyncClient, state: Path, minutes: float, tally: Tally
) -> dict[str, Cell]:
    pid = service.process.pid
    return {
        "minutes": minutes,
        "requests": sum(count for (_, status), count in tally.items() if status),
        "faults": sum(count for (_, status), count in tally.items() if status >= 500 and status not in LATER),
        "version": (await http.get("/v1/weights")).json()["weight_version"],
        "descriptors": num_descriptors(pid),
        "threads": num_threads(pid),
        "resident_mib": resident_bytes(pid=pid) / 2**20,
        "disk_mib": _bytes_below(state) / 2**20,
    }


def _bytes_below(directory: Path) -> int:
    """Return the bytes of all files, some of which may be deleted meanwhile."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mixed_load", description=__doc__)
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=4, help="minutes between two samples")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
