"""Cost estimates for large policies: ``python -m benchmarks.plan``.

Computes the cost of engines and weights for models that were not run, from rates measured on smaller models and from
the hardware rates in this file. It measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path

import torch

from benchmarks.report import RESULTS, Cell, Report, Table, finish, new_report, read_report

GPU_BYTES = 141e9
GPUS_OF_A_MACHINE = 8
NVLINK_BYTES_PER_SECOND = 300e9
NETWORK_BYTES_PER_SECOND = 50e9
"""Rates at which a GPU gathers weights: within a machine, and between machines with one network card per GPU."""
HOST_BYTES_PER_SECOND = 12.5e9
"""Rate of a machine's network for weights: 100 Gbit/s."""
BATCH_TOKENS = 16_384
GATHERS = 3
"""Gathers of each weight per batch: forward pass, backward pass, and recomputation of activations."""
STEP_SECONDS = (60.0, 300.0)
NUM_MACHINES = 16
SOURCES = ("engine_gpu", "weights_cpu", "deltas_cpu", "scaling_cpu")
"""Results from which the measured rates are taken."""
ON_GPU_PARAMETERS, ON_GPU_TOKENS = 7.616e9, 8_704
"""Parameters of qwen2.5-7b, and tokens scored with it, in the first of these results."""


@dataclass(frozen=True)
class Policy:
    """A model in bfloat16; ``active_parameters`` are those used for one token."""

    name: str
    parameters: float
    active_parameters: float

    @property
    def num_bytes(self) -> float:
        return 2 * self.parameters


@dataclass(frozen=True)
class Trainer:
    """A trainer's step: the number of completions, and the mean number of tokens of a completion with its prompt."""

    name: str
    num_completions: int
    tokens_each: int

    @property
    def num_tokens(self) -> int:
        return self.num_completions * self.tokens_each


POLICIES = (Policy("7B", 7.6e9, 7.6e9), Policy("70B", 70e9, 70e9), Policy("400B, 17B active", 400e9, 17e9))
TRAINERS = (Trainer("896 × 1,536 tokens", 896, 1_536), Trainer("8,192 × 4,608 tokens", 8_192, 4_608))
_COMPUTE = {
    "policy": ("policy", "{}"),
    "gpus": ("GPUs of an engine", "{}"),
    "compute_seconds": ("compute of a batch, s", "{:.1f}"),
    "gather_seconds": ("gathers of a batch, s", "{:.1f}"),
    "tokens_per_second": ("tokens/s of an engine", "{:,.0f}"),
    "gpus_of_a_front": ("GPUs that one front can serve", "{:,}"),
}
_ENGINES = {
    "policy": ("policy", "{}"),
    "step": ("completions of a step", "{}"),
    "tokens": ("million tokens", "{:.1f}"),
    **{f"gpus_{seconds:.0f}": (f"GPUs to score it in {seconds:.0f} s", "{:,}") for seconds in STEP_SECONDS},
}
_WEIGHTS = {
    "policy": ("policy", "{}"),
    "sent": ("what is sent", "{}"),
    "gigabytes": ("GB a step", "{:.1f}"),
    "measured_seconds": ("HTTP at the measured rate, s", "{:.0f}"),
    "network_seconds": ("at 100 Gbit/s, s", "{:.1f}"),
    "verify_seconds": ("verify, s", "{:.1f}"),
    "fan_out_seconds": (f"to {NUM_MACHINES} machines, s", "{:.1f}"),
    "memory": ("memory of the front's machine, GB", "{:,.0f}"),
}


@dataclass(frozen=True)
class Rates:
    """Measured rates, on the hardware that the results name."""

    flop_per_second: float
    upload_bytes_per_second: float
    verify_bytes_per_second: float
    delta_verify_bytes_per_second: float
    delta_share: float
    front_tokens_per_second: float


def measured(results: Path = RESULTS) -> Rates:
    """Read the rates from the results of other benchmarks."""
    on_gpu, publishing, sparse, scaling = (read_report(results / f"{source}.json") for source in SOURCES)
    engine = on_gpu.table("qwen2.5-7b").rows[-1]
    weights, deltas = publishing.table("rounds").rows[-1], sparse.table("steps").rows
    uploaded = 1e6 * _number(weights, "upload_mb_per_second") * _number(weights, "send_seconds")
    steps = [row for row in deltas if row["encoding"] == "delta"]
    model_bytes = 2**20 * _number(deltas[0], "mib")
    return Rates(
        flop_per_second=4 * ON_GPU_PARAMETERS * ON_GPU_TOKENS / _number(engine, "seconds"),
        upload_bytes_per_second=1e6 * _number(weights, "upload_mb_per_second"),
        verify_bytes_per_second=uploaded / _number(weights, "verify_seconds"),
        delta_verify_bytes_per_second=model_bytes / max(_number(row, "verify_seconds") for row in steps),
        delta_share=max(_number(row, "of_full") for row in steps),
        front_tokens_per_second=_number(scaling.table("front").rows[-1], "tokens_per_second"),
    )


def main(arguments: Sequence[str]) -> Report:
    """Compute the plan, print the page, and write it where ``--out`` says."""
    options = _parse(arguments)
    rates = measured()
    tables = [
        Table("engines", _COMPUTE, [_engine(policy, rates) for policy in POLICIES]),
        Table("steps", _ENGINES, [_step(policy, trainer, rates) for policy in POLICIES for trainer in TRAINERS]),
        Table("weights", _WEIGHTS, [row for policy in POLICIES for row in _weights(policy, rates)]),
    ]
    report = new_report("Large policies, on paper", "benchmarks.plan", arguments, torch.device("cpu"), tables)
    report = replace(report, hardware=f"Arithmetic on {', '.join(SOURCES)}")  # the computing machine is irrelevant
    finish(report, options.out)
    return report


def num_gpus(policy: Policy) -> int:
    """Return the number of GPUs, a power of two, that hold the policy in half of their memory."""
    return 2 ** ceil(log2(max(1.0, policy.num_bytes / (GPU_BYTES / 2))))


def batch_seconds(policy: Policy, rates: Rates) -> tuple[float, float]:
    """Return the seconds that a rank's batch takes to compute and to gather weights, which may or may not overlap."""
    compute = 4 * policy.active_parameters * BATCH_TOKENS / rates.flop_per_second
    shard = num_gpus(policy)
    rate = NVLINK_BYTES_PER_SECOND if shard <= GPUS_OF_A_MACHINE else NETWORK_BYTES_PER_SECOND
    return compute, 0.0 if shard == 1 else GATHERS * policy.num_bytes * (shard - 1) / shard / rate


def tokens_per_second(policy: Policy, rates: Rates) -> float:
    """Return the rate of one engine whose gathers do not overlap with its computation."""
    return num_gpus(policy) * BATCH_TOKENS / sum(batch_seconds(policy, rates))


def _engine(policy: Policy, rates: Rates) -> dict[str, Cell]:
    compute, gather = batch_seconds(policy, rates)
    one = tokens_per_second(policy, rates)
    return {
        "policy": policy.name,
        "gpus": num_gpus(policy),
        "compute_seconds": compute,
        "gather_seconds": gather,
        "tokens_per_second": one,
        "gpus_of_a_front": num_gpus(policy) * int(rates.front_tokens_per_second / one),
    }


def _step(policy: Policy, trainer: Trainer, rates: Rates) -> dict[str, Cell]:
    one = tokens_per_second(policy, rates)
    row: dict[str, Cell] = {"policy": policy.name, "step": trainer.name, "tokens": trainer.num_tokens / 1e6}
    for seconds in STEP_SECONDS:
        row[f"gpus_{seconds:.0f}"] = num_gpus(policy) * ceil(trainer.num_tokens / one / seconds)
    return row


def _weights(policy: Policy, rates: Rates) -> list[dict[str, Cell]]:
    full, delta = policy.num_bytes, rates.delta_share * policy.num_bytes
    return [
        _update(policy, "all weights", full, full / rates.verify_bytes_per_second, rates),
        _update(policy, "a delta", delta, full / rates.delta_verify_bytes_per_second, rates),
    ]


def _update(policy: Policy, sent: str, num_bytes: float, verify_seconds: float, rates: Rates) -> dict[str, Cell]:
    at_line_rate = num_bytes / HOST_BYTES_PER_SECOND
    return {
        "policy": policy.name,
        "sent": sent,
        "gigabytes": num_bytes / 1e9,
        "measured_seconds": num_bytes / rates.upload_bytes_per_second,
        "network_seconds": at_line_rate,
        "verify_seconds": verify_seconds,
        "fan_out_seconds": at_line_rate * log2(NUM_MACHINES),  # each machine that has the bytes passes them to one more
        "memory": (2 * policy.num_bytes + num_bytes) / 1e9,  # its copy, a snapshot for engines that join, the update
    }


def _number(row: dict[str, Cell], key: str) -> float:
    value = row[key]
    assert isinstance(value, float), f"{key}: {value}"
    return value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
