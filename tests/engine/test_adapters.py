"""PEFT's adapters: LoRA, DoRA, LoRA on embeddings, and modules trained in whole beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.cases import difficult_sequences
from tests.engine.test_fast_norms import assert_fast_equals_exact
from tests.tiny_models import tiny_model
from vigor_service.engine.engine import Engine


def adapted(family: str, **options: Any) -> nn.Module:  # noqa: ANN401 - what PEFT's config takes
    """Return the family's model with a random adapter, none of whose matrices is zero."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model(family)
    options = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(**options)).eval()


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("granite", "all-linear"),
        ("bloom", "all-linear"),
        ("falcon", "all-linear"),
        ("qwen3_moe", ["q_proj", "o_proj"]),
        ("deepseek_v3", ["q_a_proj", "kv_b_proj"]),
        ("gpt_oss", ["v_proj", "o_proj"]),
        ("falcon_h1", ["in_proj", "q_proj"]),
    ],
)
def test_lora_equals_the_reference(family: str, targets: str | list[str]) -> None:
    assert not assert_fast_equals_exact(adapted(family, target_modules=targets)).plan.fallback


def test_lora_on_experts_equals_the_reference_through_autograd() -> None:
    experts = [f"mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    plan = assert_fast_equals_exact(adapted("mixtral", target_modules=["q_proj"], target_parameters=experts)).plan
    assert all("experts" in name for name in plan.fallback)
    assert len(plan.fallback) == 8


@pytest.mark.parametrize("family", ["llama", "qwen2-tied"])
def test_dora_equals_the_reference_through_autograd(family: str) -> None:
    plan = assert_fast_equals_exact(adapted(family, use_dora=True)).plan
    assert any("lora_magnitude_vector" in name for name in plan.fallback)
    assert set(plan.rules) == {"autograd"}


@pytest.mark.parametrize(
    ("family", "module", "options"),
    [
        ("llama", "lm_head", {}),
        ("llama", "embed_tokens", {}),
        ("llama", "norm", {}),
        ("qwen2-tied", "embed_tokens", {"ensure_weight_tying": True}),
        ("qwen3_moe", "gate", {}),
    ],
)
def test_modules_that_are_trained_in_whole_are_measured_with_the_adapter(
    family: str, module: str, options: dict[str, Any]
) -> None:
    model = adapted(family, target_modules=["q_proj", "v_proj"], modules_to_save=[module], **options)
    plan = assert_fast_equals_exact(model).plan
    assert not plan.fallback
    assert any(f"{module}.modules_to_save" in name for names in plan.rules.values() for name in names)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_lora_on_the_embedding_equals_the_reference(family: str) -> None:
    model = adapted(family, target_modules=["embed_tokens", "q_proj"])
    assert not assert_fast_equals_exact(model).plan.fallback


def test_the_engine_measures_an_adapter_and_lists_every_tensor_of_model_and_adapter() -> None:
    model = adapted("llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    engine = Engine(model, name="adapted")  # pyright: ignore[reportArgumentType] - PEFT's wrapper serves too
    assert engine.info.layout == "packed"
    assert engine.info.num_measured_parameters == sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "lora_" in name or "modules_to_save" in name
    )
    assert engine.info.lora_scalings == {  # lora_alpha is 8 unless told
        f"base_model.model.model.layers.{layer}.self_attn.q_proj": 8 / 3 for layer in (0, 1)
    }
    assert set(engine.tensors()) == set(model.state_dict())
    assert len(engine.score(difficult_sequences()).scores) == len(difficult_sequences())
