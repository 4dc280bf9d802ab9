"""One contestant's turn, in a process of its own: the group's norms, their time, and the peak of memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.child import attempt
from benchmarks.contestants import Contestant
from benchmarks.flop_lower_bound import lower_bound_flops, sizes_of
from benchmarks.host import settle, stolen_part, stolen_seconds
from benchmarks.measuring import bound_gpu_memory, card_bytes, gemm_flops_per_second, peak_bytes, timed
from benchmarks.models import Subject, load_subject
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do, and how much of it cannot be spared."""

    model: str
    num_tokens: int
    num_parameters: int
    lower_bound_flops: int
    lower_bound_flops_prompts_once: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is the same for all turns."""

    device: str
    gpu_gib: float | None = None  # what torch may take of a GPU, the weights included
    settle_seconds: float = 0.0  # how long a time may wait, at most, for the host of a virtual machine


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn showed."""

    norms: list[float]
    seconds: float
    stolen_part: float  # of the processors' time in these seconds: the host of a virtual machine had it
    peak_bytes: int  # above what was in memory before, the weights among it
    card_bytes: int | None  # in use on the GPU in the end: by this process, where it is alone there


def take_turn(contestant: Contestant, workload: Workload, conditions: Conditions) -> Turn | str:
    """Score the group twice, once for the peak and once, warm, for the time; return why not if it cannot be done.

    Before that one sequence is scored, so that buffers of libraries are not counted.
    """
    if conditions.gpu_gib is not None:
        bound_gpu_memory(int(conditions.gpu_gib * 2**30))
    subject = load_subject(workload.model, dtype=workload.dtype, device=conditions.device)
    turns: list[Turn] = []
    refusal = attempt(lambda: turns.append(_measured(contestant, subject, workload, conditions.settle_seconds)))
    return turns[0] if refusal is None else refusal


def work_of(workload: Workload, device: str) -> Work:
    """Return what the workload asks for."""
    subject = load_subject(workload.model, dtype=workload.dtype, device=device)
    sizes, sequences = sizes_of(subject.model), workload.sequences(subject.ids)
    return Work(
        model=f"{subject.name}, {workload.dtype}, {subject.model.num_parameters() / 1e6:.0f} M parameters",
        num_tokens=sum(sequence.num_tokens for sequence in sequences),
        num_parameters=subject.model.num_parameters(),
        lower_bound_flops=lower_bound_flops(sizes, sequences, prompts_once=False),
        lower_bound_flops_prompts_once=lower_bound_flops(sizes, sequences, prompts_once=True),
    )


def products_per_second(dtype: str, conditions: Conditions) -> float:
    """Return the floating point operations per second of large matrix products."""
    settle(conditions.settle_seconds)
    return gemm_flops_per_second(torch.device(conditions.device), getattr(torch, dtype))


def _measured(contestant: Contestant, subject: Subject, workload: Workload, settle_seconds: float) -> Turn:
    norms_of = contestant.prepare(subject)
    sequences, device = workload.sequences(subject.ids), subject.model.device
    norms_of(sequences[:1])
    peak = peak_bytes(lambda: norms_of(sequences), device)
    settle(settle_seconds)
    before = stolen_seconds()
    norms, seconds = timed(lambda: norms_of(sequences), device)
    return Turn(norms, seconds, stolen_part(before, seconds), peak, card_bytes(device))
