"""Estimated norms: unbiased, with the variance of the formula, the same for the same request, never by accident."""

from __future__ import annotations

from functools import reduce
from math import sqrt
from statistics import mean, stdev, variance

import pytest
import torch
from torch import Tensor

from tests.engine.cases import difficult_sequences, largest_error
from tests.engine.norms.test_fast import with_lora
from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.ops.hutchinson import SketchVectors, estimated_share, random_signs
from vigor_service.engine.sequences import TokenSequence

NUM_DRAWS = 400
QUICK = ("mixtral",)
"""Linear layers, experts and a head: every rule that has probes but GPT-2's transposed linear layer."""
TOLERANCE = 1e-5


def rows(num_tokens: int, num_features: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, num_features, generator=torch.Generator().manual_seed(seed))


def exact_share(x_TI: Tensor, gradient_TO: Tensor) -> float:
    return (gradient_TO.double().T @ x_TI.double()).square().sum().item()


# ------------------------------------------------------------------------------------------------ signs


def test_signs_follow_from_the_name_alone() -> None:
    first = random_signs("layers.0.weight", 4, 50)
    assert set(first.unique().tolist()) == {-1, 1}
    assert torch.equal(first, random_signs("layers.0.weight", 4, 50))
    assert torch.equal(first, random_signs("layers.0.weight", 9, 50)[:4])
    assert not torch.equal(first, random_signs("layers.1.weight", 4, 50))


def test_matrices_whose_exact_share_costs_no_more_have_no_probes() -> None:
    weight, adapter, other = torch.zeros(20, 30), torch.zeros(3, 30), torch.zeros(20, 30)
    sketch = SketchVectors({"weight": weight, "adapter": adapter}, 4)
    signs_PI = sketch.of(weight, weight)
    assert signs_PI is not None
    assert signs_PI.shape == (4, 30)
    assert sketch.of(weight, weight) is signs_PI
    assert sketch.of(adapter, adapter) is None
    assert sketch.of(weight, weight, times=3) is None
    assert sketch.of(other, other) is None, "it is not measured"


@pytest.mark.parametrize("num_vectors", [0, -1])
def test_a_number_of_probes_that_estimates_nothing_is_refused(num_vectors: int) -> None:
    with pytest.raises(ValueError, match=f"num_vectors={num_vectors} must be above 0"):
        SketchVectors({}, num_vectors)


# ------------------------------------------------------------------------------------------- one matrix


@pytest.mark.parametrize("num_vectors", [1, 4])
def test_the_estimate_is_unbiased_and_has_the_variance_of_its_formula(num_vectors: int) -> None:
    x_TI, gradient_TO = rows(9, 12), rows(9, 7, seed=1)
    draws = [
        estimated_share(x_TI, gradient_TO, random_signs(str(seed), num_vectors, 12).float()).item()
        for seed in range(NUM_DRAWS)
    ]
    products_II = (x_TI.T @ gradient_TO @ gradient_TO.T @ x_TI).double()
    expected_variance = 2 / num_vectors * (products_II.square().sum() - products_II.diag().square().sum()).item()
    assert abs(mean(draws) - exact_share(x_TI, gradient_TO)) <= 4 * sqrt(expected_variance / NUM_DRAWS)
    assert variance(draws) == pytest.approx(expected_variance, rel=0.4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)],
)
def test_probes_that_are_an_orthogonal_basis_give_the_exact_share(dtype: torch.dtype, tolerance: float) -> None:
    hadamard_88 = reduce(torch.kron, [torch.tensor([[1.0, 1.0], [1.0, -1.0]])] * 3).to(dtype)
    x_TI, gradient_TO = rows(13, 8).to(dtype), rows(13, 5, seed=1).to(dtype)
    estimate = estimated_share(x_TI, gradient_TO, hadamard_88).item()
    assert estimate == pytest.approx(exact_share(x_TI, gradient_TO), rel=tolerance)


def test_large_features_do_not_overflow_float16() -> None:
    hadamard_22 = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float16)
    x_TI, gradient_TO = torch.full((3, 2), 6e4, dtype=torch.float16), rows(3, 5).half()
    estimate = estimated_share(x_TI, gradient_TO, hadamard_22).item()
    assert estimate == pytest.approx(exact_share(x_TI, gradient_TO), rel=1e-3)


def test_a_gradient_of_nothing_has_a_share_of_nothing() -> None:
    assert estimated_share(torch.zeros(5, 8), rows(5, 3), random_signs("any", 2, 8).float()).item() == 0


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_no_more_tokens_than_probes_are_exact(num_tokens: int) -> None:
    x_TI, gradient_TO = rows(num_tokens, 12), rows(num_tokens, 7, seed=1)
    estimate = estimated_share(x_TI, gradient_TO, random_signs("any", 4, 12).float()).item()
    assert estimate == pytest.approx(exact_share(x_TI, gradient_TO), rel=TOLERANCE)


# ---------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_the_mean_over_many_draws_is_the_exact_norm(family: str) -> None:
    model, sequence = tiny_model(family), difficult_sequences()[2]
    parameters = measured_parameters(model)
    fast = FastNorms(model, parameters)
    exact = fast.score([sequence])[0].grad_norm ** 2
    draws: list[float] = []
    for seed in range(NUM_DRAWS // 4):
        fast.sketch = SketchVectors({f"{seed} {name}": parameter for name, parameter in parameters.items()}, 1)
        draws.append(fast.score([sequence])[0].grad_norm ** 2)
    standard_error = stdev(draws) / sqrt(len(draws))
    assert 1e-4 * exact < standard_error < 0.03 * exact
    assert abs(mean(draws) - exact) <= 4 * standard_error


@pytest.mark.parametrize(
    ("family", "dtype"),
    [  # each family and each type once; every pair of both is slow
        ("qwen2-tied", torch.float32),
        ("gpt2", torch.bfloat16),
        ("gemma2", torch.float32),
        pytest.param("qwen2-tied", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("gpt2", torch.float32, marks=pytest.mark.slow),
        pytest.param("gemma2", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_an_estimate_depends_neither_on_the_batch_nor_on_the_order(family: str, dtype: torch.dtype) -> None:
    model, sequences = tiny_model(family, dtype=dtype), difficult_sequences()
    parameters = measured_parameters(model)
    fast, again = FastNorms(model, parameters), FastNorms(model, parameters)
    exact = fast.score(sequences)
    fast.sketch, again.sketch = SketchVectors(parameters, 1), SketchVectors(parameters, 1)
    alone = [fast.score([sequence])[0] for sequence in sequences]
    tolerance = TOLERANCE if dtype == torch.float32 else 2e-2
    assert largest_error(exact, alone) > tolerance, "it is an estimate"
    assert largest_error(again.score(sequences), alone) <= tolerance
    assert largest_error(again.score(sequences[::-1]), alone[::-1]) <= tolerance


@pytest.mark.parametrize("selection", ["norm", "bias$", "embed_tokens"])
def test_vectors_and_embeddings_stay_exact(selection: str) -> None:
    model, sequences = tiny_model("qwen2"), difficult_sequences()
    fast = FastNorms(model, measured_parameters(model, selection))
    exact = fast.score(sequences)
    fast.sketch = SketchVectors(measured_parameters(model, selection), 1)
    assert largest_error(fast.score(sequences), exact) == 0


@pytest.mark.parametrize("num_tokens", [16, 17])
def test_the_head_has_sixteen_times_the_probes(num_tokens: int) -> None:
    model, sequence = tiny_model("llama"), TokenSequence((1, 2, 3), tuple(range(5, 5 + num_tokens)))
    parameters = measured_parameters(model, "lm_head")
    fast = FastNorms(model, parameters)
    exact = fast.score([sequence])[0].grad_norm
    fast.sketch = SketchVectors(parameters, 1)
    is_exact = fast.score([sequence])[0].grad_norm == pytest.approx(exact, rel=TOLERANCE)
    assert is_exact == (num_tokens <= 16)


def test_low_rank_matrices_stay_exact() -> None:
    model, sequences = with_lora(tiny_model("llama")), difficult_sequences()
    parameters = measured_parameters(model)
    fast = FastNorms(model, parameters)  # pyright: ignore[reportArgumentType] - a PEFT model serves too
    exact = fast.score(sequences)
    fast.sketch = SketchVectors(parameters, 3)
    assert largest_error(fast.score(sequences), exact) == 0


def test_signals_and_loss_tokens_are_those_of_the_exact_norm() -> None:
    model, sequences = tiny_model("llama"), difficult_sequences()[:3]
    parameters = measured_parameters(model)
    fast = FastNorms(model, parameters)
    exact = fast.score(sequences)
    fast.sketch = SketchVectors(parameters, 1)
    for score, wanted in zip(fast.score(sequences), exact, strict=True):
        assert score.mean_entropy == pytest.approx(wanted.mean_entropy)
        assert score.mean_logprob == pytest.approx(wanted.mean_logprob)
        assert score.self_certainty == pytest.approx(wanted.self_certainty)
