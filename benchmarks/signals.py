"""The cost of scores without norms: ``python -m benchmarks.signals``.

One group is scored in alternating runs, with norms and by a forward pass only, in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.measuring import default_device, peak_bytes, timed
from benchmarks.models import load_subject
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.workloads import ON_A_CPU, ON_A_GPU, Workload, parse_workload
from vigor_service.engine.engine import Engine
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence

_COLUMNS = {
    "workload": ("workload", "{}"),
    "norm_seconds": ("with norms, s", "{:.2f}"),
    "signals_seconds": ("without, s", "{:.2f}"),
    "ratio": ("without / with", "{:.2f}"),
    "norm_mib": ("peak MiB above weights, with", "{:.0f}"),
    "signals_mib": ("without", "{:.0f}"),
    "difference": ("largest difference of a signal", "{:.1e}"),
}
_SIGNALS = ScoreParts(norm=False)
_BOTH = (NORM_AND_SIGNALS, _SIGNALS)
_NAMES = ("mean_logprob", "mean_entropy", "self_certainty", "mean_probability")


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    device = torch.device(options.device)
    workloads = options.workload or (ON_A_CPU if device.type == "cpu" else ON_A_GPU)
    rows = [_row(workload, device, options.rounds) for workload in workloads]
    notes = [
        *(f"{workload.name}: {workload.describe()}" for workload in workloads),
        f"times are medians of {options.rounds} rounds, in each of which both score the same group; the ratio is the "
        "median of the ratios within the rounds",
    ]
    table = Table("one group", _COLUMNS, rows)
    report = new_report("Scores without a gradient", "benchmarks.signals", arguments, device, [table], notes)
    finish(report, options.out)
    return report


def _row(workload: Workload, device: torch.device, num_rounds: int) -> dict[str, Cell]:
    subject = load_subject(workload.model, dtype=workload.dtype, device=str(device))
    engine, sequences = Engine(subject.model, name=subject.name), workload.sequences(subject.ids)
    peaks = {parts: peak_bytes(lambda parts=parts: engine.score(sequences, parts), device) for parts in _BOTH}
    seconds = {parts: [0.0] * num_rounds for parts in _BOTH}
    for number in range(num_rounds):
        for parts in _BOTH:
            seconds[parts][number] = timed(lambda parts=parts: engine.score(sequences, parts), device)[1]
    with_norms, without = seconds[NORM_AND_SIGNALS], seconds[_SIGNALS]
    return {
        "workload": workload.name,
        "norm_seconds": median(with_norms),
        "signals_seconds": median(without),
        "ratio": median(one / other for one, other in zip(without, with_norms, strict=True)),
        "norm_mib": peaks[NORM_AND_SIGNALS] / 2**20,
        "signals_mib": peaks[_SIGNALS] / 2**20,
        "difference": _largest_difference(engine, sequences),
    }


def _largest_difference(engine: Engine, sequences: Sequence[TokenSequence]) -> float:
    """Return the largest relative difference of a signal by a forward pass only from the one computed with a norm."""
    pairs = zip(*(engine.score(sequences, parts).scores for parts in _BOTH), strict=True)
    return max(abs(getattr(one, name) / getattr(other, name) - 1) for other, one in pairs for name in _NAMES)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signals", description=__doc__)
    parser.add_argument("--workload", type=parse_workload, action="append", help="may be repeated (default: all)")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
