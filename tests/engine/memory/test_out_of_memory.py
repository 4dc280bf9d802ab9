"""Running out of memory: what is recognised, what is halved, and a process whose allocator really refuses."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.engine.cases import largest_error
from tests.engine.memory.short_of_memory import long_sequence, prompt_heavy_model, prompt_heavy_sequences
from vigor_service.engine.engine import Engine
from vigor_service.engine.memory.out_of_memory import (
    FittingScorer,
    NoMemoryLeftError,
    is_out_of_memory,
    num_tokens,
    release_memory,
)
from vigor_service.engine.sequences import SequenceScore, TokenSequence

ROOT = Path(__file__).parents[3]


class LimitedMemory:
    """Scores a sequence by its length, and runs out of memory above so many tokens at once."""

    def __init__(self, fitting_tokens: int) -> None:
        self.fitting_tokens = fitting_tokens
        self.tries: list[int] = []
        self.num_releases = 0

    def scorer(self) -> FittingScorer:
        return FittingScorer(self._score, release=self._release)

    def _score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        self.tries.append(num_tokens(sequences))
        if self.tries[-1] > self.fitting_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [_score_of(sequence) for sequence in sequences]

    def _release(self) -> None:
        self.num_releases += 1


def _sequence(length: int, marker: int = 0) -> TokenSequence:
    return TokenSequence((marker,), (0,) * (length - 1))


def _score_of(sequence: TokenSequence) -> SequenceScore:
    return SequenceScore(sequence.num_loss_tokens, sequence.num_tokens, sequence.prompt_ids[0], 0, 0, 0)


def test_what_fits_is_scored_at_once() -> None:
    memory = LimitedMemory(100)
    scored = memory.scorer().score([_sequence(60), _sequence(40)])
    assert (memory.tries, memory.num_releases) == ([100], 0)
    assert (scored.too_long, scored.fitting_tokens) == ({}, None)


@pytest.mark.parametrize("fitting_tokens", [13, 20, 33, 70, 131])
def test_a_batch_is_halved_until_it_fits_and_every_sequence_has_its_own_score(fitting_tokens: int) -> None:
    memory = LimitedMemory(fitting_tokens)
    sequences = [_sequence(3 + 5 * index % 11, marker=index) for index in range(17)]
    scored = memory.scorer().score(sequences)
    assert scored.scores == {sequence: _score_of(sequence) for sequence in sequences}
    assert scored.too_long == {}
    assert scored.fitting_tokens == max((tried for tried in memory.tries if tried <= fitting_tokens), default=0)
    assert memory.num_releases == sum(tried > fitting_tokens for tried in memory.tries)
    assert len(memory.tries) < 2 * len(sequences)


def test_a_sequence_that_does_not_fit_alone_is_told_a_length_that_was_run() -> None:
    memory = LimitedMemory(30)
    short, long = _sequence(4), _sequence(100)
    scored = memory.scorer().score([long, short])
    assert scored.scores == {short: _score_of(short)}
    assert scored.too_long == {long: 25}
    assert memory.tries == [104, 4, 100, 50, 25]
    assert scored.fitting_tokens == 25


def test_a_longer_one_that_was_scored_before_is_not_looked_for_again() -> None:
    memory = LimitedMemory(30)
    scorer = memory.scorer()
    scorer.score([_sequence(29)])
    assert scorer.score([_sequence(40)]).too_long == {_sequence(40): 29}
    assert memory.tries == [29, 40]


def test_a_length_that_fitted_once_is_forgotten_when_memory_has_become_less() -> None:
    memory = LimitedMemory(100)
    scorer = memory.scorer()
    scorer.score([_sequence(90)])
    memory.fitting_tokens = 20
    scored = scorer.score([_sequence(80)])
    assert scored.too_long == {_sequence(80): 20}
    assert scored.fitting_tokens is None  # one sequence is no batch that could be smaller


def test_without_any_memory_no_sequence_is_called_too_long() -> None:
    memory = LimitedMemory(1)
    with pytest.raises(NoMemoryLeftError):
        memory.scorer().score([_sequence(9), _sequence(5)])
    assert memory.tries == [14, 5, 2]


def test_a_failed_try_holds_no_tensor_when_the_next_begins() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def score(sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        assert [reference for reference in kept if reference() is not None] == []
        tensor = torch.zeros(3)
        kept.append(weakref.ref(tensor))
        if len(sequences) > 1:
            raise MemoryError
        return [_score_of(sequence) for sequence in sequences]

    gc.disable()
    try:
        assert len(FittingScorer(score).score([_sequence(2), _sequence(3)]).scores) == 2
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
    ],
)
def test_failed_allocations_are_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("can't start new thread"),
        NotImplementedError("DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_other_error_passes(error: Exception) -> None:
    def score(_: Sequence[TokenSequence]) -> list[SequenceScore]:
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        FittingScorer(score).score([_sequence(2), _sequence(3)])


def test_the_allocators_own_error_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.slow
def test_a_process_whose_allocator_refuses_halves_the_batch_and_answers() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.engine.memory.short_of_memory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    fitting_tokens, batch_tokens, largest_error, length, limit = map(float, result.stdout.split())
    assert 0 < fitting_tokens < batch_tokens
    assert largest_error < 1e-5
    assert 0 < limit < length


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_full_is_survived() -> None:
    model = prompt_heavy_model()
    engine = Engine(model.to(torch.device("cuda")), name="tiny")  # pyright: ignore[reportArgumentType] - transformers wraps torch's own method
    sequences = prompt_heavy_sequences()
    expected = engine.score(sequences)
    assert expected.fitting_tokens is None
    release_memory()
    allowed = torch.cuda.memory_allocated() + (32 << 20)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        result = engine.score(sequences)
        alone = engine.score([long_sequence()])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.fitting_tokens is not None
    assert result.fitting_tokens < num_tokens(sequences)
    assert (
        largest_error(result.scores, expected.scores) < 1e-4
    )  # other batches, other kernels, another order of summation
    assert 0 < alone.too_long[long_sequence()] < long_sequence().num_tokens
