"""PEFT's adapters: LoRA, DoRA, LoRA on embeddings, and modules trained in whole beside them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import sqrt
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.engine.cases import difficult_sequences, largest_error
from tests.engine.norms.test_fast import assert_fast_equals_exact
from tests.support.tiny_models import tiny_model
from vigor_client.weight_format.lora import lora_scalings
from vigor_service.engine.attribution.attribution import attribute
from vigor_service.engine.engine import Engine
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.plan import UnsupportedModelError
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import SequenceScore


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


# ------------------------------------------------------------------- what the adapter's configuration trains

ADAPTERS: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {"bias": "all"}),
    ("qwen2", {"bias": "lora_only"}),
    ("gpt2", {"bias": "all", "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ("qwen2", {"lora_bias": True}),
    ("qwen2", {"bias": "all", "modules_to_save": ["norm"]}),
    ("qwen2", {"layers_to_transform": [1]}),
    ("qwen2", {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 3}}),
    ("qwen2", {"use_dora": True, "bias": "lora_only"}),
    ("qwen2", {"target_modules": ["q_proj", "lm_head"]}),
    ("qwen2-tied", {"target_modules": ["q_proj", "lm_head"]}),
    ("qwen2-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("qwen2-tied", {"modules_to_save": ["lm_head"]}),
    ("qwen2", {"trainable_token_indices": [5, 7, 9]}),
    ("qwen2-tied", {"trainable_token_indices": [5, 7, 9]}),
    ("qwen2", {"trainable_token_indices": {"embed_tokens": [5, 7], "lm_head": [9]}, "bias": "all"}),
]
SCORED = [sequence for sequence in difficult_sequences() if sequence.num_loss_tokens]


def trained_by_peft(model: nn.Module) -> list[str]:
    """Return the names that PEFT itself has marked, in a model that has just been made."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def float64_loop(model: nn.Module, names: list[str]) -> list[SequenceScore]:
    """Score with a float64 copy, by autograd, over the parameters of these names."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    parameters = [model.get_parameter(name).requires_grad_() for name in names]
    scores: list[SequenceScore] = []
    for sequence in SCORED:
        logits_LV = model(input_ids=torch.tensor([sequence.token_ids]), use_cache=False).logits[0]
        loss = F.cross_entropy(logits_LV[sequence.loss_positions()], torch.tensor(sequence.loss_targets()))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = sqrt(sum(gradient.square().sum().item() for gradient in gradients if gradient is not None))
        scores.append(SequenceScore(sequence.num_loss_tokens, norm, -loss.item(), 0, 0, 0))
    return scores


def fast_or_reference(model: Any, parameters: Mapping[str, nn.Parameter]) -> list[SequenceScore]:  # noqa: ANN401
    """Score as the engine does: by the reference where the fast path does not understand the head."""
    try:
        return FastNorms(model, parameters).score(SCORED)
    except UnsupportedModelError:
        return [exact_score(model, sequence, parameters) for sequence in SCORED]


@pytest.mark.parametrize(
    ("family", "options", "selection"),
    [
        *((*adapter, None) for adapter in ADAPTERS),
        (*ADAPTERS[0], "lora"),  # an adapter's parameters are what is measured by default: one choice, two names
        *(pytest.param(*adapter, "lora", marks=pytest.mark.slow) for adapter in ADAPTERS[1:]),
    ],
)
@pytest.mark.filterwarnings("ignore:Model( has|.* with) `tie_word_embeddings=True`:UserWarning")
def test_measured_is_what_peft_trains(family: str, options: dict[str, Any], selection: str | None) -> None:
    model: Any = adapted(family, **{"target_modules": ["q_proj", "v_proj"]} | options)
    names = trained_by_peft(model)
    expected = float64_loop(model, names)
    parameters = measured_parameters(model, selection)
    assert list(parameters) == names
    assert trained_by_peft(model) == names
    assert largest_error(fast_or_reference(model, parameters), expected) <= 1e-5
    assert list(measured_parameters(model, selection)) == names  # also in a model that the fast path has frozen
    attribution = attribute(model, SCORED[0], [parameters])
    assert attribution.grad_norm == pytest.approx(expected[0].grad_norm, rel=1e-5)


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
@pytest.mark.parametrize("active", ["default", "other"])
def test_of_two_adapters_the_active_one_is_measured(active: str, saved: list[str] | None) -> None:
    from peft import LoraConfig

    model: Any = adapted("llama", target_modules=["q_proj", "v_proj"])
    other = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False, modules_to_save=saved)
    model.add_adapter("other", other)
    model.set_adapter(active)
    names = trained_by_peft(model)
    expected = float64_loop(model, names)
    parameters = measured_parameters(model)
    assert list(parameters) == names
    assert all(f".{active}." in name for name in names)
    assert largest_error(FastNorms(model, parameters).score(SCORED), expected) <= 1e-5
    (scaling,) = {*lora_scalings(model).values()}
    assert scaling == {"default": 8 / 3, "other": 8 / 2}[active]


def test_an_adapter_whose_parameters_have_no_gradient_is_refused() -> None:
    model: Any = adapted("llama", target_modules=["q_proj"])
    with model.disable_adapter(), pytest.raises(ValueError, match="disabled or merged"):
        measured_parameters(model)
    model.merge_adapter()
    with pytest.raises(ValueError, match="disabled or merged"):
        measured_parameters(model)


def test_an_adapter_outside_the_layers_is_refused_by_its_type() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model: Any = get_peft_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="of type PROMPT_TUNING is not in the model's layers"):
        measured_parameters(model)


def test_an_adapter_outside_pefts_wrapper_is_refused() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), tiny_model("llama"))
    with pytest.raises(ValueError, match=r"load it with peft\.PeftModel\.from_pretrained"):
        measured_parameters(model)


def test_the_rows_of_single_tokens_are_left_to_autograd() -> None:
    model: Any = adapted("llama", target_modules=["q_proj"], trainable_token_indices=[5, 7, 9])
    (name,) = FastNorms(model, measured_parameters(model)).plan.fallback
    assert name.endswith("embed_tokens.token_adapter.trainable_tokens_delta.default")
