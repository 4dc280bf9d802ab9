"""Experts as operations equal the experts' own implementation, whatever their weights look like."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedModel

from tests.support.tiny_models import tiny_model
from vigor_service.engine.model.experts import UnsupportedExpertsError, _run_experts, experts_as_operations

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(17)[None], use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_implementation(family: str) -> None:
    model = tiny_model(family)
    expected = logits(model)
    with experts_as_operations(model):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
def test_the_models_own_implementation_comes_back_even_after_an_error(family: str) -> None:
    model = tiny_model(family)
    before = model.config._experts_implementation
    with pytest.raises(RuntimeError, match="on purpose"), experts_as_operations(model):
        raise RuntimeError("on purpose")
    assert model.config._experts_implementation == before


@pytest.mark.parametrize("flag", ["has_post_expert_norm", "_is_expert_parallel"])
def test_experts_that_do_something_else_are_refused_by_name(flag: str) -> None:
    experts = SimpleNamespace(**{"has_post_expert_norm": False, "_is_expert_parallel": False, flag: True})
    with pytest.raises(UnsupportedExpertsError, match="SimpleNamespace has a norm after each expert, or runs in"):
        _run_experts(experts, torch.ones(3, 2), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))
