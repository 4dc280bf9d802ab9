"""A sequence has the norm that it has alone, whatever is beside it or ran before: frequencies, windows, chunks."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.engine.cases import random_sequence
from tests.support.tiny_models import tiny_model
from vigor_service.engine.engine import Engine
from vigor_service.engine.sequences import TokenSequence

SHORT_FACTOR, LONG_FACTOR = [1.0, 1.1, 1.2, 1.3], [4.0, 6.0, 8.0, 10.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": SHORT_FACTOR,
    "long_factor": LONG_FACTOR,
    "short_mscale": 1.0,
    "long_mscale": 1.3,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

# case -> (family, what differs, layout)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "longrope": ("phi3", {"original_max_position_embeddings": 24, "rope_parameters": LONGROPE}, "packed"),
    "dynamic rope": ("llama", {"max_position_embeddings": 24, "rope_parameters": DYNAMIC}, "packed"),
    "longrope with its own scale": (
        "phimoe",
        {
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 24},
            "original_max_position_embeddings": 24,
            "sliding_window": 12,
            **EXPERTS,
        },
        "packed",
    ),
    "window in the mask alone": (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
        "packed",
    ),
    "chunks": (
        "llama4_text",
        {
            "attention_chunk_size": 12,
            "intermediate_size_mlp": 48,
            "no_rope_layers": [1, 0],
            "num_local_experts": 2,
        },
        "packed",
    ),
    "sinks": ("gpt_oss", {"sliding_window": 12}, "packed"),
}


def sequences() -> list[TokenSequence]:
    """Return short and long ones, some with a prompt that is shared, the long ones beyond each length of the cases."""
    rng = random.Random(1)
    prompt = random_sequence(rng, 18, 0).prompt_ids
    own = [random_sequence(rng, 3, 4), random_sequence(rng, 12, 35), random_sequence(rng, 30, 12)]
    return [*own, *(TokenSequence(prompt, random_sequence(rng, 1, n).completion_ids) for n in (3, 4, 40))]


def float64_norm(model: PreTrainedModel, sequence: TokenSequence) -> float:
    """The norm by a plain loop in float64, of a model that has run nothing before."""
    model.set_experts_implementation("eager")  # the usual one has no float64
    model = model.double()
    parameters = list(model.requires_grad_(True).parameters())
    logits_LV = model(input_ids=torch.tensor([sequence.token_ids]), use_cache=False).logits[0]
    positions = sequence.loss_positions()
    loss = F.cross_entropy(logits_LV[positions].double(), torch.tensor(sequence.loss_targets()))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return sum(gradient.square().sum().item() for gradient in gradients if gradient is not None) ** 0.5


@cache
def float64_norms(case: str) -> list[float]:
    """The norms of the sequences, each in a fresh model of a case; once for all tests of it."""
    family, overrides, _ = CASES[case]
    return [float64_norm(tiny_model(family, **overrides), sequence) for sequence in sequences()]


@pytest.mark.parametrize("case", CASES)
def test_a_sequence_has_the_norm_that_it_has_alone_in_a_fresh_model(case: str) -> None:
    family, overrides, layout = CASES[case]
    engine = Engine(tiny_model(family, **overrides), name="tiny", method="rules")
    assert engine.info.layout == layout
    expected = float64_norms(case)
    together = engine.score(sequences()).scores
    alone = [engine.score([sequence]).scores[0] for sequence in reversed(sequences())][::-1]
    for scores in (together, alone):
        assert [score.grad_norm for score in scores] == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_does_not_depend_on_what_ran_before(case: str) -> None:
    family, overrides, _ = CASES[case]
    engine = Engine(tiny_model(family, **overrides), name="tiny", method="reference")
    expected = float64_norms(case)
    longest_first = sorted(range(len(expected)), key=lambda index: -sequences()[index].num_tokens)
    for index in longest_first:
        assert engine.score([sequences()[index]]).scores[0].grad_norm == pytest.approx(expected[index], rel=2e-5)


def test_what_follows_a_sequence_counts_where_the_model_lets_it_condition_what_is_before() -> None:
    model = tiny_model("bloom")  # in the single layout

    def mix_backwards(_module: nn.Module, _inputs: object, output: Any) -> Any:  # noqa: ANN401
        hidden, *others = output if isinstance(output, tuple) else (output,)
        mixed = hidden + 0.3 * hidden.mean(1, keepdim=True)  # as indexers that keep the best keys of all do
        return (mixed, *others) if isinstance(output, tuple) else mixed

    model.get_submodule("transformer.h.0").register_forward_hook(mix_backwards)
    engine = Engine(model, name="tiny", method="rules")
    assert "exact" not in engine.info.rules
    got = [score.grad_norm for score in engine.score(sequences()).scores]
    assert got == pytest.approx([float64_norm(model, sequence) for sequence in sequences()], rel=2e-5)
