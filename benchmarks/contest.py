"""One group, scored in turn by everything that can score it: times, peaks, norms, or why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from transformers import PreTrainedModel

from benchmarks.floor import floor_flops, sizes_of
from benchmarks.loops import ideal_loop, published_loop
from benchmarks.measuring import bound_gpu_memory, card_bytes, gemm_flops_per_second, peak_bytes, timed
from benchmarks.models import Subject, load_subject
from benchmarks.per_sample import opacus_norms, vmap_norms
from benchmarks.workloads import Workload
from vigor_service.batching import Pool
from vigor_service.engine.engine import Engine
from vigor_service.engine.sequences import TokenSequence

PUBLISHED, IDEAL, ENGINE = "published loop", "ideal loop", "engine"
LOOPS: dict[str, Callable[[PreTrainedModel, Sequence[TokenSequence]], list[float]]] = {
    PUBLISHED: published_loop,
    IDEAL: ideal_loop,
    "torch.func vmap": vmap_norms,
    "Opacus ghost norms": opacus_norms,
}
CONTESTANTS = (*LOOPS, ENGINE)
_Contestant = Callable[[Sequence[TokenSequence]], list[float]]


@dataclass
class Outcome:
    """What one contestant showed, or why it did not run."""

    norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each round
    peak_bytes: int = 0  # above what was in memory before, the weights among it
    refusal: str | None = None


@dataclass
class Contest:
    """One workload's outcomes, and what they are judged by."""

    model: str
    num_tokens: int
    num_parameters: int
    floor_flops: int
    floor_flops_prompts_once: int
    flops_per_second: list[float]  # of large matrix products, in each round
    outcomes: dict[str, Outcome]
    card_bytes: int | None = None  # in use on the GPU when all was done: by this process, where it is alone there

    def seconds(self, name: str) -> float | None:
        """Median over the rounds."""
        seconds = self.outcomes[name].seconds
        return median(seconds) if seconds else None

    def ratio(self, name: str, other: str) -> float | None:
        """Median over the rounds of one contestant's time by another's in the same round."""
        if name not in self.outcomes or other not in self.outcomes:
            return None
        return median_of_ratios(self.outcomes[name].seconds, self.outcomes[other].seconds)

    def peak_ratio(self, name: str, other: str) -> float | None:
        """One contestant's peak by another's, if both ran."""
        pair = [self.outcomes.get(contestant) for contestant in (name, other)]
        peaks = [outcome.peak_bytes for outcome in pair if outcome is not None and outcome.refusal is None]
        return peaks[0] / peaks[1] if len(peaks) == 2 and peaks[1] else None

    def fraction(self, name: str, flops: int) -> float | None:
        """Median over the rounds of the time that ``flops`` take at the rate of products, by the contestant's time."""
        return median_of_ratios([flops / rate for rate in self.flops_per_second], self.outcomes[name].seconds)

    def difference(self, name: str) -> float | None:
        """Largest relative difference of a norm from the ideal loop's."""
        norms = self.outcomes[name].norms
        wanted = self.outcomes[IDEAL].norms if IDEAL in self.outcomes else []
        if not norms or not wanted:
            return None
        return max(abs(norm / right - 1) for norm, right in zip(norms, wanted, strict=True))


def median_of_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Return the median of the ratios of what was measured in the same round; None if there is no round.

    Noise of the machine that lasts for a round is in both, and leaves the ratio.
    """
    if not numerators or not denominators:
        return None
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def run_contest(
    workload: Workload,
    names: Sequence[str],
    *,
    device: str,
    repeats: int,
    max_batch_tokens: int,
    activation_mib: Sequence[int] = (),
    gpu_gib: float | None = None,
) -> Contest:
    """Let the named contestants score the workload: once to warm up, once for memory, ``repeats`` times for time.

    For each bound of ``activation_mib`` one more engine takes part. ``gpu_gib`` bounds what torch may take of a GPU,
    the weights included.
    """
    if gpu_gib is not None:
        bound_gpu_memory(int(gpu_gib * 2**30))
    subject = load_subject(workload.model, dtype=workload.dtype, device=device)
    contestants = _contestants(subject, names, max_batch_tokens)
    contestants |= {bounded_engine(mib): _engine(subject, max_batch_tokens, mib) for mib in activation_mib}
    sequences = workload.sequences(subject.ids)
    outcomes = {name: _first_outcome(contestants[name], sequences, subject.model.device) for name in contestants}
    running = {name: contestants[name] for name in contestants if outcomes[name].refusal is None}
    rates = [_time_a_round(running, outcomes, sequences, subject.model, first) for first in range(repeats)]
    sizes = sizes_of(subject.model)
    return Contest(
        model=f"{subject.name}, {workload.dtype}, {subject.model.num_parameters() / 1e6:.0f} M parameters",
        num_tokens=sum(sequence.num_tokens for sequence in sequences),
        num_parameters=subject.model.num_parameters(),
        floor_flops=floor_flops(sizes, sequences, prompts_once=False),
        floor_flops_prompts_once=floor_flops(sizes, sequences, prompts_once=True),
        flops_per_second=rates,
        outcomes=outcomes,
        card_bytes=card_bytes(subject.model.device),
    )


def attempt(call: Callable[[], object]) -> str | None:
    """Run the call; return None, or why it refused, ran out of memory, or is not there."""
    try:
        call()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except (RuntimeError, ValueError, MemoryError) as error:
        lines = str(error).splitlines()
        return f"{type(error).__name__}: {lines[0][:240] if lines else 'without a message'}"
    return None


def bounded_engine(activation_mib: int) -> str:
    """Name the contestant that is the engine under such a bound."""
    return f"{ENGINE}, --activation-mib {activation_mib}"


def _contestants(subject: Subject, names: Sequence[str], max_batch_tokens: int) -> dict[str, _Contestant]:
    contestants: dict[str, _Contestant] = {
        name: lambda sequences, loop=LOOPS[name]: _with_gradients(subject.model, loop, sequences)
        for name in names
        if name in LOOPS
    }
    if ENGINE in names:
        contestants[ENGINE] = _engine(subject, max_batch_tokens)
    return contestants


def _engine(subject: Subject, max_batch_tokens: int, activation_mib: int | None = None) -> _Contestant:
    bound = None if activation_mib is None else activation_mib << 20
    engine = Engine(subject.model, name=subject.name, activation_bytes=bound)
    return lambda sequences: _in_batches(engine, sequences, max_batch_tokens)


def _with_gradients(
    model: PreTrainedModel,
    loop: Callable[[PreTrainedModel, Sequence[TokenSequence]], list[float]],
    sequences: Sequence[TokenSequence],
) -> list[float]:
    model.requires_grad_(True)
    try:
        return loop(model, sequences)
    finally:
        model.requires_grad_(False)


def _in_batches(engine: Engine, sequences: Sequence[TokenSequence], max_batch_tokens: int) -> list[float]:
    """Score in the batches that the service would make; return norms in the given order."""
    pool: Pool[int] = Pool()
    pool.add(0, sequences)
    norms: dict[TokenSequence, float] = {}
    while len(pool):
        batch = list(pool.take_batch(max_batch_tokens))
        norms |= {s: score.grad_norm for s, score in zip(batch, engine.score(batch).scores, strict=True)}
    return [norms[sequence] for sequence in sequences]


def _first_outcome(contestant: _Contestant, sequences: Sequence[TokenSequence], device: torch.device) -> Outcome:
    """Warm up on one sequence, so that buffers of libraries are not counted, then measure the peak."""
    outcome = Outcome()

    def run() -> None:
        contestant(sequences[:1])
        outcome.peak_bytes = peak_bytes(lambda: contestant(sequences), device)

    outcome.refusal = attempt(run)
    return outcome


def _time_a_round(
    contestants: Mapping[str, _Contestant],
    outcomes: Mapping[str, Outcome],
    sequences: Sequence[TokenSequence],
    model: PreTrainedModel,
    first: int,
) -> float:
    """Time each contestant once, warm, another one first in each round; return the rate of products in this round."""
    names = list(contestants)
    for index in range(len(names)):
        name = names[(first + index) % len(names)]
        contestants[name](sequences)  # warms up: heap, caches and all threads are as the one before left them
        outcomes[name].norms, seconds = timed(lambda name=name: contestants[name](sequences), model.device)
        outcomes[name].seconds.append(seconds)
    return gemm_flops_per_second(model.device, model.dtype)
