"""How time and memory grow: ``python -m benchmarks.growth``.

Runs the ideal loop and the engine in turn while one size grows and the others stay fixed: the completions of a group,
the tokens of a completion, or the model. Each turn is a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.contest import run_contest
from benchmarks.contestants import ENGINE, IDEAL, Contestant
from benchmarks.host import add_settle_seconds
from benchmarks.measuring import default_device
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.turn import Conditions
from benchmarks.workloads import Workload, parse_numbers
from vigor_service.engine.memory.token_budget import trial_sizes

_COLUMNS = {
    "loop_seconds": ("ideal loop, s", "{:.2f}"),
    "engine_seconds": ("engine, s", "{:.2f}"),
    "ratio": ("loop / engine", "{:.2f}×"),
    "loop_mib": ("ideal loop, peak MiB", "{:.0f}"),
    "engine_mib": ("engine, peak MiB", "{:.0f}"),
}
_MODELS_ON_A_CPU = "llama-26m,llama-61m,smollm2-135m,smollm2-360m,qwen2.5-0.5b"
_MODELS_ON_A_GPU = "qwen2.5-0.5b,qwen2.5-1.5b,qwen2.5-3b,qwen2.5-7b"


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    tables = [_group_table(options), _length_table(options), _model_table(options)]
    notes = [
        "seconds are medians over the rounds, the ratio is the median of the ratios within each round; peaks are above "
        "the weights"
    ]
    device = torch.device(default_device())
    report = new_report("How time and memory grow", "benchmarks.growth", arguments, device, tables, notes)
    finish(report, options.out)
    return report


def _group_table(options: argparse.Namespace) -> Table:
    heading, work = ("completions", "{}"), f"{options.model}, {options.length} completion tokens each"
    points = [(size, _workload(options, options.model, size, options.length)) for size in options.groups]
    return _table("completions of a group", heading, points, options, work)


def _length_table(options: argparse.Namespace) -> Table:
    heading, work = ("tokens of a completion", "{}"), f"{options.model}, {options.completions} completions"
    points = [(n, _workload(options, options.model, options.completions, n)) for n in options.lengths]
    return _table("tokens of a completion", heading, points, options, work)


def _model_table(options: argparse.Namespace) -> Table:
    heading, work = ("M parameters", "{:.0f}"), f"{options.completions} completions of {options.length} tokens"
    points = [(name, _workload(options, name, options.completions, options.length)) for name in options.models]
    return _table("size of the model", heading, points, options, f"{', '.join(options.models)}, {work}")


def _workload(options: argparse.Namespace, model: str, completions: int, length: int) -> Workload:
    return Workload("", model, completions, options.prompt_tokens, length, length, options.dtype)


def _table(
    name: str,
    heading: tuple[str, str],
    points: Sequence[tuple[int | str, Workload]],
    options: argparse.Namespace,
    work: str,
) -> Table:
    notes = [f"{work}, after a prompt of {options.prompt_tokens}, {options.dtype}, {options.repeats} rounds"]
    rows: list[dict[str, Cell]] = []
    for point, workload in points:
        row = _row(point, workload, options)
        if isinstance(row, str):
            notes.append(f"{point}: {row}")
        else:
            rows.append(row)
    return Table(name, {"x": heading, **_COLUMNS}, rows, notes)


def _row(point: int | str, workload: Workload, options: argparse.Namespace) -> dict[str, Cell] | str:
    """Return one row, or why it could not be measured."""
    contestants = [Contestant(method, options.max_batch_tokens) for method in (IDEAL, ENGINE)]
    conditions = Conditions(default_device(), settle_seconds=options.settle_seconds)
    contest = run_contest(workload, contestants, conditions, repeats=options.repeats)
    if isinstance(contest, str):
        return contest
    refusals = [f"{name}: {o.refusal}" for name, o in contest.outcomes.items() if o.refusal is not None]
    if refusals:
        return "; ".join(refusals)
    return {
        "x": point if isinstance(point, int) else contest.work.num_parameters / 1e6,
        "loop_seconds": contest.seconds(IDEAL),
        "engine_seconds": contest.seconds(ENGINE),
        "ratio": contest.ratio(IDEAL, ENGINE),
        "loop_mib": contest.outcomes[IDEAL].peak_mib,
        "engine_mib": contest.outcomes[ENGINE].peak_mib,
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    on_a_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a shape or a checkpoint (default: %(default)s)")
    parser.add_argument("--models", type=_names, default=_names(_MODELS_ON_A_GPU if on_a_gpu else _MODELS_ON_A_CPU))
    parser.add_argument("--groups", type=parse_numbers, default=[2, 4, 8, 16])
    parser.add_argument("--lengths", type=parse_numbers, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--completions", type=int, default=4, help="where their number does not grow")
    parser.add_argument("--length", type=int, default=128, help="where it does not grow (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16" if on_a_gpu else "float32")
    batch_tokens = trial_sizes(torch.device(default_device())).max_batch
    parser.add_argument("--max-batch-tokens", type=int, default=batch_tokens)
    parser.add_argument("--repeats", type=int, default=3)
    add_settle_seconds(parser)
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main(sys.argv[1:])
