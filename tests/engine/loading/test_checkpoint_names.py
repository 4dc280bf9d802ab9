"""What a checkpoint's tensors become in a model equals what transformers loads, family by family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.loading.checkpoint_names import ConversionError, plan_checkpoint


def saved(model: PreTrainedModel, directory: Path) -> dict[str, Tensor]:
    """The tensors of the model as ``save_pretrained`` writes them."""
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def made_of(model: PreTrainedModel, checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for conversion in plan_checkpoint(model, checkpoint).conversions:
        made |= conversion.tensors(checkpoint.__getitem__, torch.float32)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_gives_back_the_models_own_tensors(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    checkpoint, own = saved(model, tmp_path), model.state_dict()
    assert plan_checkpoint(model, checkpoint).unexpected == []
    made = made_of(model, checkpoint)
    assert own.keys() - made.keys() <= {"lm_head.weight"}  # where it is tied
    for name, tensor in made.items():
        assert torch.equal(tensor, own[name]), name


def test_experts_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", num_experts=12)  # "10" sorts before "2"
    own = model.state_dict()
    for name, tensor in made_of(model, saved(model, tmp_path)).items():
        assert torch.equal(tensor, own[name]), name


def test_buffers_of_old_checkpoints_are_ignored_and_other_strangers_are_not() -> None:
    old = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.7.self_attn.q_proj.weight"]
    assert plan_checkpoint(tiny_model("llama"), old).unexpected == ["model.layers.7.self_attn.q_proj.weight"]
    masks = ["transformer.h.0.attn.bias", "h.1.attn.masked_bias", "transformer.h.0.attn.scale"]
    assert plan_checkpoint(tiny_model("gpt2"), masks).unexpected == ["transformer.h.0.attn.scale"]


def test_layers_that_the_class_leaves_out_are_ignored() -> None:
    names = ["model.layers.61.enorm.weight", "model.layers.5.mlp.gate.weight"]
    assert plan_checkpoint(tiny_model("deepseek_v3"), names).unexpected == ["model.layers.5.mlp.gate.weight"]


def test_a_decoder_saved_alone_is_found_under_the_models_prefix(tmp_path: Path) -> None:
    model = tiny_model("qwen2-tied")
    checkpoint = saved(cast("PreTrainedModel", model.base_model), tmp_path)
    assert "embed_tokens.weight" in checkpoint
    assert torch.equal(made_of(model, checkpoint)["model.embed_tokens.weight"], checkpoint["embed_tokens.weight"])


def test_a_tensor_in_two_forms_is_refused() -> None:
    model = tiny_model("qwen3_moe")
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    single = [f"model.layers.0.mlp.experts.{i}.{part}_proj.weight" for i in range(6) for part in ("gate", "up")]
    (conversion,) = plan_checkpoint(model, [fused, *single]).conversions
    with pytest.raises(ConversionError, match="comes in several forms"):
        conversion.tensors(lambda _: torch.zeros(16, 32), torch.float32)


def test_experts_that_do_not_fit_together_are_refused_by_name() -> None:
    names = [f"model.layers.0.mlp.experts.{i}.{part}_proj.weight" for i in range(6) for part in ("gate", "up")]
    (conversion,) = plan_checkpoint(tiny_model("qwen3_moe"), names).conversions
    with pytest.raises(ConversionError, match=re.escape("cannot be made of model.layers.0.mlp.experts.0")):
        conversion.tensors(lambda name: torch.zeros(17 if ".3." in name else 16, 32), torch.float32)


def test_integers_do_not_become_weights() -> None:
    (conversion,) = plan_checkpoint(tiny_model("llama"), ["lm_head.weight"]).conversions
    with pytest.raises(ConversionError, match=r"lm_head.weight is torch.int8, which does not turn into torch.float32"):
        conversion.tensors(lambda _: torch.zeros(320, 32, dtype=torch.int8), torch.float32)
