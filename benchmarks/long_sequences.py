"""One sequence, longer and longer: ``python -m benchmarks.long_sequences``.

For each length, the engine scores one prompt with one completion once, in a process of its own. Layers either run once
and keep what their backward pass needs, or run twice (checkpoints). Reports the time and the peak memory above the
weights, or why a length could not be scored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.child import attempt, in_child
from benchmarks.measuring import default_device, peak_bytes, timed
from benchmarks.models import load_subject
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.workloads import Workload, parse_numbers
from vigor_service.engine.memory.activation_policy import Activations
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms

_COLUMNS = {
    "tokens": ("tokens", "{:,}"),
    "loss_tokens": ("of them in the loss", "{:,}"),
    "once_seconds": ("seconds", "{:.1f}"),
    "once_mib": ("peak MiB above weights", "{:.0f}"),
    "twice_seconds": ("checkpointed: seconds", "{:.1f}"),
    "twice_mib": ("checkpointed: peak MiB", "{:.0f}"),
    "grad_norm": ("norm", "{:.5g}"),
}


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    rows: list[dict[str, Cell]] = []
    notes = [f"{options.model}, {options.layers or 'all'} layers, {options.dtype}; the engine alone, one run a length"]
    for length in options.lengths:
        row: dict[str, Cell] = dict.fromkeys(_COLUMNS)
        for way in ("once", "twice"):
            if way == "once" and length > options.once_up_to:
                continue
            part = in_child(score_one, options.model, length, options.prompt_tokens, options.dtype, options.layers, way)
            if isinstance(part, str):
                notes.append(f"{length:,} tokens, layers run {way}: not scored: {part}")
            else:
                row |= part
        if row["tokens"]:
            rows.append(row)
    device = torch.device(default_device())
    tables = [Table("one sequence", _COLUMNS, rows, notes)]
    report = new_report("Long sequences", "benchmarks.long_sequences", arguments, device, tables)
    finish(report, options.out)
    return report


def score_one(
    model: str, num_tokens: int, num_prompt_tokens: int, dtype: str, num_layers: int | None, way: str
) -> dict[str, Cell] | str:
    """Score one sequence of ``num_tokens``, layers run "once" or "twice"; return its cells, or why it failed."""
    subject = load_subject(model, dtype=dtype, device="auto", num_layers=num_layers)
    fast = FastNorms(subject.model, measured_parameters(subject.model))
    length = num_tokens - num_prompt_tokens
    sequences = Workload("", model, 1, num_prompt_tokens, length, length).sequences(subject.ids)
    activations = Activations.CHECKPOINT if way == "twice" else Activations.REMATERIALIZE
    cells: dict[str, Cell] = {"tokens": num_tokens, "loss_tokens": length}

    def run() -> None:
        scores, cells[f"{way}_seconds"] = timed(
            lambda: fast.score(sequences, activations=activations), subject.model.device
        )
        cells["grad_norm"] = scores[0].grad_norm

    def measure() -> None:
        cells[f"{way}_mib"] = peak_bytes(run, subject.model.device) / 2**20

    refusal = attempt(measure)
    return cells if refusal is None else refusal


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_sequences", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a shape or a checkpoint (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="number of layers to keep of the shape (default: all)")
    parser.add_argument("--lengths", type=parse_numbers, default=[4096, 16_384, 32_768], help="tokens in all")
    parser.add_argument("--once-up-to", type=int, default=2**30, help="longer ones only with checkpoints")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
