"""Usual RMSNorms run by the fused kernel: told apart from others by what they do, and the same but for rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.engine.cases import difficult_sequences, largest_error, reference
from tests.support.tiny_models import tiny_model
from vigor_service.engine.model.fused_rms_norm import fused, usual_rms_norms
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.plan import Plan


class UsualRMSNorm(nn.Module):
    def __init__(self, num_features: int = 24) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.variance_epsilon = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        normalized = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normalized.to(x.dtype)


class ShiftedRMSNorm(UsualRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.weight) / self.weight  # Gemma's, on a weight of ones twice as much


class OtherEpsilonRMSNorm(UsualRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1)


class OnceRoundedRMSNorm(UsualRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        normalized = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight * normalized).to(x.dtype)  # gpt-oss's


class GatedRMSNorm(UsualRMSNorm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        normalized = super().forward(x)
        return normalized if gate is None else normalized * gate


class BiasedRMSNorm(UsualRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(24))


class UsualLayerNorm(UsualRMSNorm):
    pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_norms_that_do_the_usual_are_taken(dtype: torch.dtype) -> None:
    usual, gated = UsualRMSNorm(), GatedRMSNorm()
    others = [ShiftedRMSNorm(), OtherEpsilonRMSNorm(), BiasedRMSNorm(), UsualLayerNorm()]
    model = nn.Sequential(usual, gated, *others).to(dtype)
    assert usual_rms_norms(model) == {usual: 1e-6, gated: 1e-6}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_that_rounds_elsewhere_is_taken_only_where_nothing_is_rounded(dtype: torch.dtype) -> None:
    model = nn.Sequential(OnceRoundedRMSNorm())
    assert usual_rms_norms(model)
    assert not usual_rms_norms(model.to(dtype))


def test_a_norm_in_float64_is_left_alone() -> None:
    assert not usual_rms_norms(nn.Sequential(UsualRMSNorm()).double())


def test_a_norm_whose_forward_was_replaced_is_left_alone() -> None:
    norm = UsualRMSNorm()
    norm.forward = lambda x: x  # as accelerate's hooks do
    assert not usual_rms_norms(nn.Sequential(norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_kernel_gives_the_same_but_for_rounding_and_leaves_no_trace(dtype: torch.dtype) -> None:
    norm = UsualRMSNorm(96).to(dtype)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 7, 96, dtype=dtype)
    with fused({norm: 1e-6}):
        output = norm(x)
        assert "forward" in vars(norm)
    assert "forward" not in vars(norm)
    torch.testing.assert_close(output, norm(x))


def test_a_forward_that_was_put_on_the_norm_after_it_was_chosen_is_there_again_afterwards() -> None:
    norm, x = UsualRMSNorm(), torch.randn(5, 24)
    norms = usual_rms_norms(nn.Sequential(norm))
    norm.forward = hooked = lambda x: 2 * x
    with fused(norms):
        assert norm(x).ne(2 * x).any()
    assert vars(norm)["forward"] is hooked


def test_a_gate_is_not_forgotten() -> None:
    norm, x, gate = GatedRMSNorm(), torch.randn(5, 24), torch.randn(5, 24)
    with fused({norm: 1e-6}):
        torch.testing.assert_close(norm(x, gate), norm(x) * gate)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "deepseek_v3", "gemma2"])
def test_norms_through_the_fused_kernel_equal_the_reference(family: str) -> None:
    model = tiny_model(family)
    parameters, sequences = measured_parameters(model), difficult_sequences()
    expected = reference(model, sequences, parameters)
    fast = FastNorms(model, parameters)
    norms = usual_rms_norms(model)
    assert bool(norms) != (family == "gemma2")
    fast.plan = with_norms(fast.plan, norms)
    assert largest_error(fast.score(sequences), expected) <= 1e-5


def with_norms(plan: Plan, norms: dict[nn.Module, float]) -> Plan:
    """As on a CUDA device, where the plan's decoder has them from the beginning."""
    return replace(plan, decoder=replace(plan.decoder, norms=norms))
