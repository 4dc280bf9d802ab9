"""The fast path equals the reference, on every family, dtype and odd sequence."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import isnan
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.engine.cases import (
    CPU,
    difficult_sequences,
    family_reference,
    largest_error,
    on_device,
    random_sequence,
    reference,
    with_each_type,
)
from tests.support.tiny_models import FAMILIES, tiny_config, tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.plan import UnsupportedModelError
from vigor_service.engine.sequences import SequenceScore, TokenSequence

FP32_TOLERANCE = 1e-5
HALF_TOLERANCE = 2e-2
WITH_FALLBACK = {"mamba", "falcon_h1"}  # state-space mixers
# Each rule and each layout in one 16-bit type or both; the other families, all of them quick in float32, are slow.
QUICK_16_BIT = {
    torch.bfloat16: {"qwen2-tied", "gpt2", "gemma2", "qwen3_moe", "gpt_oss", "bloom", "mamba"},
    torch.float16: {"llama", "gpt2", "gemma3", "cohere", "gptj", "mixtral", "deepseek_v3"},
}


def assert_fast_equals_exact(model: Any, selection: str | None = None) -> FastNorms:  # noqa: ANN401 - transformers or PEFT
    sequences, parameters = difficult_sequences(), measured_parameters(model, selection)
    expected = reference(model, sequences, parameters)
    fast = FastNorms(model, parameters)
    assert largest_error(fast.score(sequences), expected) <= FP32_TOLERANCE
    return fast


@cache
def scored(family: str, device: torch.device) -> tuple[list[SequenceScore], bool]:
    """Score ``difficult_sequences`` by the fast path; also return whether it leaves something to autograd."""
    model = on_device(tiny_model(family), device)
    fast = FastNorms(model, measured_parameters(model))
    return fast.score(difficult_sequences()), bool(fast.plan.fallback)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_the_reference(family: str, device: torch.device) -> None:
    scores, has_fallback = scored(family, device)
    assert largest_error(scores, family_reference(family, device)) <= FP32_TOLERANCE
    assert has_fallback == (family in WITH_FALLBACK)


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_the_reference(family: str, device: torch.device) -> None:
    for score, wanted in zip(scored(family, device)[0], family_reference(family, device), strict=True):
        for name in ("mean_logprob", "mean_entropy", "self_certainty"):
            assert getattr(score, name) == pytest.approx(getattr(wanted, name), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("family", "dtype"), with_each_type(QUICK_16_BIT, FAMILIES))
def test_16_bit_norms_are_near_the_reference_and_keep_its_order(
    family: str, dtype: torch.dtype, device: torch.device
) -> None:
    sequences = [sequence for sequence in difficult_sequences() if sequence.num_loss_tokens]
    model = on_device(tiny_model(family, dtype=dtype), device)
    parameters = measured_parameters(model)
    expected = reference(model, sequences, parameters)
    scores = FastNorms(model, parameters).score(sequences)
    assert largest_error(scores, expected) <= HALF_TOLERANCE
    exact = [score for score in family_reference(family, CPU) if score.num_loss_tokens]
    for (a, exact_a), (b, exact_b) in combinations(zip(scores, exact, strict=True), 2):
        if abs(exact_a.grad_norm / exact_b.grad_norm - 1) > HALF_TOLERANCE * 2:  # each of the two may be off by one
            assert (a.grad_norm < b.grad_norm) == (exact_a.grad_norm < exact_b.grad_norm)


@pytest.mark.parametrize("family", [name for name in FAMILIES if tiny_config(name).tie_word_embeddings])
def test_dropping_the_cross_term_of_tied_weights_is_seen(family: str) -> None:
    model, sequences = tiny_model(family), [random_sequence(random.Random(0), 6, 20)]
    parameters = measured_parameters(model)
    expected = reference(model, sequences, parameters)
    fast = FastNorms(model, parameters)
    assert fast.plan.tied_weight_VD is not None
    fast.plan = replace(fast.plan, tied_weight_VD=None)
    assert largest_error(fast.score(sequences), expected) > 10 * FP32_TOLERANCE


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
def test_a_norm_depends_neither_on_the_batch_nor_on_the_order(family: str, device: torch.device) -> None:
    model, sequences = on_device(tiny_model(family), device), difficult_sequences()
    fast = FastNorms(model, measured_parameters(model))
    alone = [fast.score([sequence])[0] for sequence in sequences]
    assert largest_error(fast.score(sequences), alone) <= FP32_TOLERANCE
    assert largest_error(fast.score(sequences[::-1]), alone[::-1]) <= FP32_TOLERANCE
    assert largest_error(fast.score(sequences * 3), alone * 3) <= FP32_TOLERANCE


def test_a_batch_whose_token_count_equals_the_number_of_heads_is_measured_right() -> None:
    model = tiny_model("gemma3")  # its q_norm sees (1, heads, tokens, features)
    sequence = TokenSequence((1, 2), (3, 4, 5))  # four tokens condition the loss, four heads
    parameters = measured_parameters(model)
    expected = reference(model, [sequence], parameters)
    assert largest_error(FastNorms(model, parameters).score([sequence]), expected) <= FP32_TOLERANCE


def test_an_empty_completion_has_no_numbers() -> None:
    model = tiny_model()
    (score,) = FastNorms(model, measured_parameters(model)).score([TokenSequence((1, 2), ())])
    assert score.num_loss_tokens == 0
    assert isnan(score.grad_norm)
    assert isnan(score.mean_logprob)


def test_no_sequences_have_no_scores() -> None:
    model = tiny_model()
    assert FastNorms(model, measured_parameters(model)).score([]) == []


def test_scaling_undoes_the_mean_over_tokens() -> None:
    model = tiny_model()
    (score,) = FastNorms(model, measured_parameters(model)).score([TokenSequence((1, 2), (3, 4, 5, 6))])
    assert score.scaled_grad_norm == pytest.approx(2 * score.grad_norm)


def test_the_model_keeps_its_own_attention_and_stays_frozen() -> None:
    model = tiny_model("gemma2")
    before = model.config._attn_implementation
    FastNorms(model, measured_parameters(model)).score(difficult_sequences())
    assert model.config._attn_implementation == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------------- selections


@pytest.mark.parametrize(
    "selection",
    [
        "all",
        "norms",
        "last-1-layers",
        "last-2-layers",
        r"layers\.1\.",
        r"norm",
        r"bias$",
        r"embed_tokens",
        r"v_proj\.weight",
        r"lm_head",
    ],
)
def test_any_selection_of_parameters_equals_the_reference(selection: str) -> None:
    assert_fast_equals_exact(tiny_model("qwen2"), selection)


@pytest.mark.parametrize("family", ["llama", "qwen2-tied", "gpt2", "qwen3_moe", "bloom", "mamba"])
def test_the_last_layer_alone_equals_the_reference_and_no_gradient_reaches_below_it(family: str) -> None:
    model = tiny_model(family)
    fast = FastNorms(model, measured_parameters(model, "last-1-layers"))
    requires_grad: list[list[bool]] = []
    first, last = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    for layer in (first, last):
        layer.register_forward_hook(lambda _module, _inputs, output: requires_grad.append(differentiable(output)))
    sequence = difficult_sequences()[0]
    scores = fast.score([sequence])
    assert requires_grad == [[False], [True]]
    assert largest_error(scores, reference(model, [sequence], measured_parameters(model, "last-1-layers"))) <= (
        FP32_TOLERANCE
    )


def differentiable(output: object) -> list[bool]:
    """Whether the hidden states that a layer returns, alone or first of a tuple, require a gradient."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return [hidden.requires_grad]


@pytest.mark.parametrize("family", ["llama", "qwen2-tied", "gpt2"])
def test_lora_parameters_alone_are_measured_by_default(family: str, device: torch.device) -> None:
    fast = assert_fast_equals_exact(with_lora(on_device(tiny_model(family), device)))
    assert not fast.plan.fallback
    assert all("lora_" in name for names in fast.plan.rules.values() for name in names)


def with_lora(model: PreTrainedModel) -> nn.Module:
    """Return the model with random LoRA matrices, none of them zero."""
    from peft import LoraConfig, get_peft_model

    transposed = model.config.model_type == "gpt2"
    config = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=transposed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(model, config)
    return adapted.eval()


# -------------------------------------------------------------------------------------------- fallbacks


class Gated(nn.Module):
    """A module with a parameter whose operation no rule knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gate = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * torch.sigmoid(self.gate)


class Mixed(nn.Module):
    """A module with a matrix that is used as no linear layer uses it, and a vector that is used twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.matrix = nn.Parameter(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) * 0.1)
        self.vector = nn.Parameter(torch.full((32,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + torch.einsum("bti,ij->btj", x, self.matrix)) * self.vector + self.vector


def wrap_mlp(wrapper: Callable[[nn.Module], nn.Module], layer: int = 0) -> PreTrainedModel:
    model = tiny_model("llama")
    model.model.layers[layer].mlp = wrapper(model.model.layers[layer].mlp)
    return model


def test_a_parameter_that_no_rule_knows_is_exact_through_autograd() -> None:
    fast = assert_fast_equals_exact(wrap_mlp(Gated))
    assert list(fast.plan.fallback) == ["model.layers.0.mlp.gate"]


def test_parameters_with_unknown_or_several_uses_are_exact_through_autograd() -> None:
    fast = assert_fast_equals_exact(wrap_mlp(Mixed))
    assert set(fast.plan.fallback) == {"model.layers.0.mlp.matrix", "model.layers.0.mlp.vector"}


def test_a_layer_shared_by_two_depths_is_exact_through_autograd() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    fast = assert_fast_equals_exact(model)
    assert len(fast.plan.fallback) == 3


def test_an_unused_parameter_adds_nothing() -> None:
    model = tiny_model("llama")
    model.model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    assert list(assert_fast_equals_exact(model).plan.untouched) == ["model.unused"]


def test_a_head_that_is_no_linear_layer_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(UnsupportedModelError, match="Sequential"):
        FastNorms(model, measured_parameters(model))


def test_logits_that_differ_from_the_models_own_are_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output * 1.01)
    with pytest.raises(UnsupportedModelError, match="logits differ"):
        FastNorms(model, measured_parameters(model))
