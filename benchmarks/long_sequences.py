"""One sequence, longer and longer: ``python -m benchmarks.long_sequences``.

The engine scores one prompt with one completion, in a process of its own for each length, once. Reports the time and
the peak memory above the weights, or why a length could not be scored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.child import in_child
from benchmarks.contest import attempt
from benchmarks.measuring import peak_bytes, timed
from benchmarks.models import load_subject
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.workloads import Workload
from vigor_service.engine.engine import Engine

_COLUMNS = {
    "tokens": ("tokens", "{:,}"),
    "loss_tokens": ("of them in the loss", "{:,}"),
    "seconds": ("seconds", "{:.1f}"),
    "peak_mib": ("peak MiB above weights", "{:.0f}"),
    "grad_norm": ("norm", "{:.5g}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    rows: list[dict[str, Cell]] = []
    notes = [f"{options.model}, {options.layers or 'all'} layers, {options.dtype}; the engine alone, one run a length"]
    for length in options.lengths:
        row = in_child(score_one, options.model, length, options.prompt_tokens, options.dtype, options.layers)
        if isinstance(row, str):
            notes.append(f"{length:,} tokens were not scored: {row}")
        else:
            rows.append(row)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tables = [Table("one sequence", _COLUMNS, rows, notes)]
    report = new_report("Long sequences", "benchmarks.long_sequences", arguments, device, tables)
    finish(report, options.out)
    return report


def score_one(
    model: str, num_tokens: int, num_prompt_tokens: int, dtype: str, num_layers: int | None
) -> dict[str, Cell] | str:
    """Score one sequence of ``num_tokens``; return the row of the table, or why there is none."""
    subject = load_subject(model, dtype=dtype, device="auto", num_layers=num_layers)
    engine = Engine(subject.model, name=subject.name)
    length = num_tokens - num_prompt_tokens
    sequences = Workload("", model, 1, num_prompt_tokens, length, length).sequences(subject.ids)
    row: dict[str, Cell] = {"tokens": num_tokens, "loss_tokens": length}

    def run() -> None:
        result, row["seconds"] = timed(lambda: engine.score(sequences), subject.model.device)
        row["grad_norm"] = result.scores[0].grad_norm

    def measure() -> None:
        row["peak_mib"] = peak_bytes(run, subject.model.device) / 2**20

    refusal = attempt(measure)
    return row if refusal is None else refusal


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_sequences", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a shape or a checkpoint (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="cut the shape to so many (default: all)")
    parser.add_argument("--lengths", type=_numbers, default=[4096, 8192, 16_384, 32_768], help="tokens in all")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
