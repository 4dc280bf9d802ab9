"""One contestant's turn, in a process of its own: the group's norms, their time, and the peak memory."""

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
    """The work of a workload: its sizes, and the lower bounds of its operations."""

    model: str
    num_tokens: int
    num_parameters: int
    lower_bound_flops: int
    lower_bound_flops_prompts_once: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions that are the same for all turns."""

    device: str
    gpu_gib: float | None = None  # maximum GPU memory for torch, the weights included
    settle_seconds: float = 0.0  # maximum wait for a virtual machine's host before a timing


@dataclass(frozen=True, slots=True)
class Turn:
    """The measurements of one turn."""

    norms: list[float]
    seconds: float
    stolen_part: float  # share of the processors' time that a virtual machine's host took in these seconds
    peak_bytes: int  # above the memory in use before, which includes the weights
    card_bytes: int | None  # GPU memory in use at the end, by this process if it is the only one


def take_turn(contestant: Contestant, workload: Workload, conditions: Conditions) -> Turn | str:
    """Score the group twice, first for the peak, then, warm, for the time; return the reason if it fails.

    One sequence is scored before, so that buffers of libraries are not counted.
    """
    if conditions.gpu_gib is not None:
        bound_gpu_memory(int(conditions.gpu_gib * 2**30))
    subject = load_subject(workload.model, dtype=workload.dtype, device=conditions.device)
    turns: list[Turn] = []
    refusal = attempt(lambda: turns.append(_measured(contestant, subject, workload, conditions.settle_seconds)))
    return turns[0] if refusal is None else refusal


def work_of(workload: Workload, device: str) -> Work:
    """Return the work of the workload."""
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
