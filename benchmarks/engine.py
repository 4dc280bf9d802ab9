"""The engine against everything else that computes the same norms: ``python -m benchmarks.engine``.

For each workload, one group of completions of one prompt is scored in turn by the published loop, an ideal loop,
``torch.func``'s vmap, Opacus's ghost norms and the engine. Each scores it several times, each time in a fresh process.
Reports times and ratios, peak memory above the weights, and shares of the FLOP lower bound (flop_lower_bound.py) at the
rate of large matrix products measured in the same rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.contest import Contest, run_contest, stolen_note
from benchmarks.contestants import CONTESTANTS, ENGINE, IDEAL, PUBLISHED, Contestant
from benchmarks.host import add_settle_seconds
from benchmarks.measuring import default_device
from benchmarks.report import Cell, Report, Table, finish, new_report
from benchmarks.turn import Conditions
from benchmarks.workloads import FORM, ON_A_CPU, ON_A_GPU, STEPS_ON_A_GPU, Workload, parse_workload
from vigor_service.engine.memory.token_budget import trial_sizes

_COLUMNS = {
    "contestant": ("", "{}"),
    "seconds": ("seconds", "{:.2f}"),
    "microseconds_per_token": ("µs/token", "{:.1f}"),
    "times_engine": ("time / engine", "{:.2f}×"),
    "peak_mib": ("peak MiB above weights", "{:.0f}"),
    "peak_to_published": ("peak / published", "{:.2f}"),
    "of_lower_bound": ("share of the FLOP lower bound", "{:.0%}"),
    "of_lower_bound_prompts_once": ("share of the bound, prompts once", "{:.0%}"),
    "difference": ("largest difference", "{:.1e}"),
}
SUITES = {"gpu": STEPS_ON_A_GPU}
MOST_LOOPED_GROUPS = 8
_NOTES = [
    "times are medians over the rounds; ratios and fractions are medians of the ratios within each round; the order "
    "of the contestants rotates; each turn is a fresh process; its peak is from a pass before the one that is timed, "
    "and the table has the highest",
    "the engine's process has glibc's heap as vigor-service sets it, unless the environment sets it for all; the "
    "others have it as it comes",
    "the FLOP lower bound is 4 · P · tokens (head on loss rows only, no lookup tables) + attention (2 causal products "
    "forward, 4 backward) at the rate of large matrix products in the same round, the better of torch's and the "
    "engine's library; work for the norms themselves is not in it",
    "an engine that computes the forward rows of a shared prompt once may exceed 100 % of the first bound; the second "
    "counts these rows once",
    "the last column is the largest relative difference of a norm from the ideal loop's",
]


def main(arguments: Sequence[str]) -> Report:
    """Measure, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    tables = [_measure(workload, options) for workload in options.workload or _default_workloads(options.device)]
    device = torch.device(options.device)
    notes = [*_NOTES, f"the engine's batches hold up to {options.max_batch_tokens} tokens"]
    if device.type == "cpu":
        notes.append("on a GPU: not measured, this was run on a CPU")
    report = new_report("Comparison with other implementations", "benchmarks.engine", arguments, device, tables, notes)
    finish(report, options.out)
    return report


def _measure(workload: Workload, options: argparse.Namespace) -> Table:
    conditions = Conditions(options.device, gpu_gib=options.gpu_gib, settle_seconds=options.settle_seconds)
    contest = run_contest(workload, _contestants(options, workload), conditions, repeats=options.repeats)
    if isinstance(contest, str):
        return Table(workload.name, _COLUMNS, [], [f"not measured: {contest}"])
    return Table(workload.name, _COLUMNS, [_row(contest, name) for name in contest.outcomes], _notes(contest, workload))


def _contestants(options: argparse.Namespace, workload: Workload) -> list[Contestant]:
    methods = options.contestant or CONTESTANTS
    if options.suite is not None and workload.num_groups > MOST_LOOPED_GROUPS:
        methods = [
            method for method in methods if method == ENGINE
        ]  # a loop's time and peak per group do not depend on the number of groups
    bounds: list[int] = options.activation_mib
    return [
        *(Contestant(method, options.max_batch_tokens) for method in methods),
        *(Contestant(ENGINE, options.max_batch_tokens, mib) for mib in bounds),
    ]


def _row(contest: Contest, name: str) -> dict[str, Cell]:
    seconds = contest.seconds(name)
    return {
        "contestant": name,
        "seconds": seconds,
        "microseconds_per_token": None if seconds is None else 1e6 * seconds / contest.work.num_tokens,
        "times_engine": contest.ratio(name, ENGINE),
        "peak_mib": contest.outcomes[name].peak_mib,
        "peak_to_published": contest.peak_ratio(name, PUBLISHED),
        "of_lower_bound": contest.fraction(name, contest.work.lower_bound_flops),
        "of_lower_bound_prompts_once": contest.fraction(name, contest.work.lower_bound_flops_prompts_once),
        "difference": contest.difference(name),
    }


def _notes(contest: Contest, workload: Workload) -> list[str]:
    work, rate = contest.work, max(contest.flops_per_second)
    cards = {name: outcome.card_bytes for name, outcome in contest.outcomes.items()}
    return [
        f"{work.model}; {workload.describe()}; {work.num_tokens} tokens in all; {len(contest.flops_per_second)} rounds",
        f"the FLOP lower bound is {work.lower_bound_flops / 1e12:.3f} TFLOP, with prompts once "
        f"{work.lower_bound_flops_prompts_once / 1e12:.3f}; matrix products run at up to {rate / 1e12:.3f} TFLOP/s",
        stolen_note(contest),
        *(f"{name}: GPU memory in use at the end: {used / 1e9:.1f} GB" for name, used in cards.items() if used),
        *(f"{name} did not run: {o.refusal}" for name, o in contest.outcomes.items() if o.refusal is not None),
    ]


def _default_workloads(device: str) -> list[Workload]:
    return ON_A_GPU if device.startswith("cuda") else ON_A_CPU


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument(
        "--workload",
        type=parse_workload,
        action="append",
        help=f"a name, or {FORM}; may be repeated (default: all that fit)",
    )
    parser.add_argument("--contestant", choices=CONTESTANTS, action="append", help="may be repeated (default: all)")
    parser.add_argument("--device", default=default_device(), help="(default: %(default)s)")
    parser.add_argument("--max-batch-tokens", type=int, help="of the engine (default: the service's most)")
    parser.add_argument(
        "--activation-mib",
        type=int,
        action="append",
        default=[],
        metavar="MIB",
        help="one more engine, started with this; may be repeated",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of the first group by the loops and the engine, without a wait: about two minutes on two cores",
    )
    parser.add_argument(
        "--suite",
        choices=SUITES,
        help="gpu: one round of the engine with 8 and 32 groups, of the smallest model with 128, for four models, and "
        "of the published loop with 8; sized for ten minutes of an H100 by the times of docs/benchmarks.md",
    )
    add_settle_seconds(parser)
    parser.add_argument("--gpu-gib", type=float, help="what torch may take of a GPU, the weights included")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    options = parser.parse_args(arguments)
    if options.quick or options.suite is not None:
        options.repeats, options.settle_seconds = 1, 0.0
    if options.suite is not None:
        options.workload = options.workload or SUITES[options.suite]
        options.contestant = options.contestant or [PUBLISHED, ENGINE]
    if options.quick:
        options.workload = options.workload or _default_workloads(options.device)[:1]
        options.contestant = options.contestant or [PUBLISHED, IDEAL, ENGINE]
    device = torch.device(options.device)
    if options.suite == "gpu" and options.workload is SUITES["gpu"] and device.type != "cuda":
        parser.error(f"--suite gpu takes days on {device.type}; give it a small --workload to try it there")
    if options.gpu_gib is not None and device.type != "cuda":
        parser.error(f"--gpu-gib bounds the memory of a GPU, and this is to run on {device.type}")
    options.max_batch_tokens = options.max_batch_tokens or trial_sizes(device).max_batch
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
