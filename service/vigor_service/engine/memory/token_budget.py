"""How many tokens a batch may have: measured by a few trial batches that grow, within a bounded time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from vigor_service.engine.memory.proc import bytes_of
from vigor_service.engine.sequences import TokenSequence

logger = logging.getLogger(__name__)

SAFE_SHARE = 0.6
"""Share of the free memory that batches may take: other lengths and masks than the trials' need other amounts."""

MAX_TRIAL_SECONDS = 5.0
"""Seconds after which a trial is the last one: each trial has twice the tokens of the one before."""

_MAX_TRIAL_SEQUENCE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TrialSizes:
    """Tokens of the first and the last trial, and the most that a batch may have, however much memory there is."""

    first: int
    last: int
    max_batch: int

    def times(self, count: int) -> TrialSizes:
        """Return the sizes for this number of devices that share a batch."""
        return TrialSizes(self.first * count, self.last * count, self.max_batch * count)


# On a CPU few tokens run at once anyway, but a group that stays in one batch shares its prompt. On a GPU, more than
# 16,384 tokens only delay a weight swap.
_CPU_SIZES = TrialSizes(first=64, last=256, max_batch=4096)
_CUDA_SIZES = TrialSizes(first=512, last=4096, max_batch=16384)


def trial_sizes(device: torch.device) -> TrialSizes:
    """Return the sizes that suit a CPU or a CUDA device."""
    return _CUDA_SIZES if device.type == "cuda" else _CPU_SIZES


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The peak of bytes in use: on CUDA what torch allocated, on a CPU what Linux counts as resident in this process.

    ``start`` resets the peak and returns the bytes in use; ``read`` returns the peak since then. None: not known.
    """

    start: Callable[[], int | None]
    read: Callable[[], int | None]


def measure_batch_tokens(
    fits: Callable[[Sequence[TokenSequence]], bool],
    *,
    sizes: TrialSizes,
    max_sequence_tokens: int,
    vocab_size: int,
    peak: PeakMemory,
    free_bytes: int | None,
    seconds: Callable[[], float] = perf_counter,
) -> int:
    """Return how many tokens fit into the safe share of the free memory: at least those of the smallest trial.

    ``fits`` scores a trial batch and returns whether memory sufficed; if it did not, the result is the size of the
    trial before it. Otherwise the largest trial's peak divided by its tokens is the memory per token. This is an
    overestimate: memory that does not grow with a batch is counted as if it did.
    """
    bytes_in_use = peak.start()
    fitting_tokens, ran_out = 0, False
    for num_tokens in _doubling(sizes):
        started_at = seconds()
        ran_out = not fits(trial_sequences(num_tokens, max_sequence_tokens=max_sequence_tokens, vocab_size=vocab_size))
        if ran_out:
            break
        fitting_tokens = num_tokens
        if seconds() - started_at > MAX_TRIAL_SECONDS:
            break
    bytes_per_token = None if ran_out else _bytes_per_token(bytes_in_use, peak.read(), fitting_tokens)
    budget = fitting_tokens if ran_out else _affordable_tokens(bytes_per_token, free_bytes, sizes.max_batch)
    budget = max(budget, sizes.first)
    logger.info(
        "batch_budget",
        extra={
            "max_batch_tokens": budget,
            "most": sizes.max_batch,
            "free_bytes": free_bytes,
            "share": SAFE_SHARE,
            "bytes_per_token": bytes_per_token,
            "trial_tokens": fitting_tokens,
            "ran_out": ran_out,
        },
    )
    return budget


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the functions that measure the device's peak."""
    return _cuda_peak(device) if device.type == "cuda" else resident_peak()


def resident_peak(proc: Path = Path("/proc")) -> PeakMemory:
    """Return the functions that measure the peak that Linux counts; it is not known if it cannot be reset."""

    def start() -> int | None:
        try:
            (proc / "self/clear_refs").write_text("5")
        except OSError:
            return None
        return read()

    def read() -> int | None:
        return bytes_of("VmHWM", proc / "self/status")

    return PeakMemory(start, read)


def _cuda_peak(device: torch.device) -> PeakMemory:
    def start() -> int:
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)

    return PeakMemory(start, lambda: torch.cuda.max_memory_allocated(device))


def trial_sequences(num_tokens: int, *, max_sequence_tokens: int, vocab_size: int) -> list[TokenSequence]:
    """Return distinct sequences of ``num_tokens`` tokens in all, half prompt and half completion, two per prompt."""
    length = max(2, min(_MAX_TRIAL_SEQUENCE_TOKENS, max_sequence_tokens, num_tokens // 2) // 2 * 2)
    return [_trial_sequence(index, length // 2, vocab_size) for index in range(num_tokens // length)]


def _doubling(sizes: TrialSizes) -> Iterator[int]:
    num_tokens = sizes.first
    while num_tokens <= sizes.last:
        yield num_tokens
        num_tokens *= 2


def _bytes_per_token(before: int | None, peak: int | None, num_tokens: int) -> int | None:
    return None if before is None or peak is None else max(1, (peak - before) // num_tokens)


def _affordable_tokens(bytes_per_token: int | None, free_bytes: int | None, most: int) -> int:
    """Return how many tokens fit into the safe share of the free memory; ``most`` if memory cannot be measured."""
    if bytes_per_token is None or free_bytes is None:
        return most
    return min(most, int(SAFE_SHARE * free_bytes) // bytes_per_token)


def _trial_sequence(index: int, half: int, vocab_size: int) -> TokenSequence:
    pair = index // 2
    prompt = tuple((pair * half + position) % vocab_size for position in range(half))
    return TokenSequence(prompt, tuple((index * half + 7 * position + index) % vocab_size for position in range(half)))
