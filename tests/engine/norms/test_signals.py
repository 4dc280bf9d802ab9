"""Signals by a forward pass alone equal a plain loop, on every family, and nothing is kept for a backward pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import isnan, log

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tests.engine.cases import difficult_sequences, on_device, random_sequence
from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.batching.shared_prefixes import MIN_TOKENS
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.parallel_reference import Reference
from vigor_service.engine.norms.reference import exact_signals
from vigor_service.engine.norms.signals import FastSignals
from vigor_service.engine.sequences import ScoreParts, SequenceScore, TokenSequence

NUMBERS = ("mean_logprob", "mean_entropy", "self_certainty", "mean_probability", "sum_logprob")
TOLERANCE = 1e-5


@torch.no_grad()
def plain_loop(model: PreTrainedModel, sequence: TokenSequence) -> dict[str, list[float] | float]:
    """What the numbers mean, in float64, one sequence and one token after the other."""
    ids = torch.tensor([sequence.token_ids], device=model.device)
    logits = model(input_ids=ids).logits[0].double()
    counts = sequence.loss_mask or (True,) * len(sequence.completion_ids)
    first = len(sequence.prompt_ids)
    rows = [logits[first + index - 1] for index, is_counted in enumerate(counts) if is_counted]
    targets = [ids[0, first + index] for index, is_counted in enumerate(counts) if is_counted]
    logprobs = [-cross_entropy(row, target).item() for row, target in zip(rows, targets, strict=True)]
    entropies = [torch.distributions.Categorical(logits=row).entropy().item() for row in rows]
    certainties = [(-row.log_softmax(-1) - log(len(row))).mean().item() for row in rows]
    num_tokens = len(logprobs)
    return {
        "mean_logprob": sum(logprobs) / num_tokens,
        "mean_entropy": sum(entropies) / num_tokens,
        "self_certainty": sum(certainties) / num_tokens,
        "mean_probability": sum(torch.tensor(logprobs).double().exp().tolist()) / num_tokens,
        "sum_logprob": sum(logprobs),
        "token_logprobs": logprobs,
    }


def assert_equal(score: SequenceScore, wanted: dict[str, list[float] | float]) -> None:
    for name in NUMBERS:
        assert getattr(score, name) == pytest.approx(wanted[name], rel=TOLERANCE, abs=TOLERANCE)
    assert score.token_logprobs == pytest.approx(wanted["token_logprobs"], abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_by_each_of_the_three_ways_equal_a_plain_loop(family: str, device: torch.device) -> None:
    model = on_device(tiny_model(family), device)
    sequences = [sequence for sequence in difficult_sequences() if sequence.num_loss_tokens]
    wanted = [plain_loop(model, sequence) for sequence in sequences]
    fast = FastNorms(model, measured_parameters(model))
    ways = {
        "forward": FastSignals(fast.passes).score(sequences),
        "with norms": fast.score(sequences),
        "reference": [exact_signals(model, sequence) for sequence in sequences],
    }
    for scores in ways.values():
        for score, numbers in zip(scores, wanted, strict=True):
            assert_equal(score, numbers)
    assert all(isnan(score.grad_norm) for way in ("forward", "reference") for score in ways[way])


def test_a_prompt_that_is_shared_runs_once_and_changes_nothing() -> None:
    model, rng = tiny_model("qwen3"), random.Random(1)
    prompt = random_sequence(rng, 2 * MIN_TOKENS, 1).prompt_ids
    sequences = [TokenSequence(prompt, random_sequence(rng, 1, length).completion_ids) for length in (1, 7, 20)]
    fast = FastNorms(model, measured_parameters(model))
    assert fast.passes.shared_prompts([sequences]) == [prompt]
    for score, sequence in zip(FastSignals(fast.passes).score(sequences), sequences, strict=True):
        assert_equal(score, plain_loop(model, sequence))


def test_nothing_is_kept_for_a_backward_pass() -> None:
    model, sequences = tiny_model("llama"), [random_sequence(random.Random(2), 5, 9)]
    fast = FastNorms(model, measured_parameters(model))

    def tensors_kept(work: Callable[[], object]) -> int:
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda it: it):
            work()
        return len(kept)

    assert tensors_kept(lambda: FastSignals(fast.passes).score(sequences)) == 0
    assert tensors_kept(lambda: fast.score(sequences)) > 0


def test_the_engine_gives_the_parts_that_are_asked_for_and_no_others() -> None:
    engine, sequences = Engine(tiny_model("qwen3"), name="tiny"), difficult_sequences()
    norms = engine.score(sequences).scores
    signals = engine.score(sequences, ScoreParts(norm=False)).scores
    everything = engine.score(sequences, ScoreParts(token_logprobs=True)).scores
    for norm, signal, every, sequence in zip(norms, signals, everything, sequences, strict=True):
        assert isnan(signal.grad_norm)
        assert (norm.token_logprobs, signal.token_logprobs) == (None, None)
        assert len(every.token_logprobs or ()) == sequence.num_loss_tokens
        for name in NUMBERS:
            numbers = [getattr(score, name) for score in (signal, norm, every)]
            assert numbers == pytest.approx([numbers[0]] * 3, abs=TOLERANCE, nan_ok=True)


def test_the_reference_of_several_sequences_has_the_signals_too() -> None:
    model, sequences = tiny_model("llama"), difficult_sequences()
    scores = Reference(model, measured_parameters(model)).signals(sequences)
    assert [score.num_loss_tokens for score in scores] == [sequence.num_loss_tokens for sequence in sequences]
    for score, sequence in zip(scores, sequences, strict=True):
        if sequence.num_loss_tokens:
            assert_equal(score, plain_loop(model, sequence))
