"""A checkpoint is loaded whole or not at all; one of images and text scores text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.support.preloaded_process import in_preloaded_process
from tests.support.tiny_models import save_tiny_checkpoint, save_tiny_hub_model, tiny_tokenizer
from tests.sweep.families import families, tiny_policy
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import ModelLoadError, load_policy
from vigor_service.engine.sequences import TokenSequence

Tensors = dict[str, Tensor]

# ------------------------------------------------------------------------------------------ complete


def checkpoint(directory: Path, family: str, change: Callable[[Tensors], object]) -> str:
    """Save a tiny model with its tensors changed."""
    path = save_tiny_checkpoint(directory, family) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return str(directory)


@pytest.mark.parametrize(
    ("family", "lost"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
        ("qwen2-tied", "model.embed_tokens.weight"),
        ("gpt2", "transformer.h.1.ln_2.weight"),
    ],
)
def test_a_missing_tensor_is_named(family: str, lost: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, family, lambda tensors: tensors.pop(lost))
    with pytest.raises(ModelLoadError, match=f"it lacks .*{lost}"):
        load_policy(source)


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    lost = "model.layers.0.mlp.experts.3.down_proj.weight"
    with pytest.raises(ModelLoadError, match="cannot load model"):
        load_policy(checkpoint(tmp_path, "qwen3_moe", lambda tensors: tensors.pop(lost)))


def test_a_head_that_only_a_tied_model_can_do_without_is_refused_with_what_to_do(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, "qwen2-tied")
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r'it lacks lm_head.weight \(if .* set "tie_word_embeddings": true'):
        load_policy(str(tmp_path))


def test_many_missing_tensors_are_named_in_part(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "llama", lambda tensors: [tensors.pop(name) for name in list(tensors)[:8]])
    with pytest.raises(ModelLoadError, match="and 3 more tensors"):
        load_policy(source)


def test_a_tensor_that_the_model_has_no_place_for_is_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "llama", lambda tensors: tensors.update(stranger=torch.ones(2)))
    with pytest.raises(ModelLoadError, match="LlamaForCausalLM has no place for its stranger"):
        load_policy(source)


def test_a_config_with_fewer_layers_than_the_checkpoint_is_refused(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"has no place for its model.layers.1"):
        load_policy(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}),
        ("gpt2", {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}),
        ("deepseek_v3", {"model.layers.61.enorm.weight": torch.rand(32)}),
    ],
)
def test_what_the_architecture_is_known_to_ignore_is_ignored(family: str, buffers: Tensors, tmp_path: Path) -> None:
    assert load_policy(checkpoint(tmp_path, family, lambda tensors: tensors.update(buffers)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.safetensors", "shard.safetensors.bin"])
def test_a_shard_that_is_no_safetensors_file_of_the_checkpoint_is_refused_before_it_is_opened(
    name: str, tmp_path: Path
) -> None:
    directory = save_tiny_checkpoint(tmp_path / "checkpoint")
    names = list(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / name)  # to open it would take for ever
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=f"index.json names .*{re.escape(name)}"):
        load_policy(str(directory))


def refusals(names: list[str], cache: str) -> list[str]:
    """Say why each of these is refused; for a process of its own, since its cache of the hub becomes this directory."""
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = cache, True
    refused: list[str] = []
    for name in names:
        with pytest.raises(ModelLoadError) as error:
            load_policy(name)
        refused.append(str(error.value))
    return refused


@pytest.mark.timeout(120)
def test_a_checkpoint_of_a_hub_whose_weights_are_a_pickle_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    cases = {
        "someone/index": ("model.safetensors.index.json", {}),
        "someone/other-index": ("x.safetensors.index.json", {"transformers_weights": "x.safetensors.index.json"}),
        "someone/file": ("unread.json", {"transformers_weights": "adapter_model.bin"}),
    }
    for name, (index, config) in cases.items():
        _replace_by_a_pickle(save_tiny_hub_model(tmp_path, name), index, config)
    refused = in_preloaded_process(refusals, list(cases), tmp_path)
    assert all("names 'adapter_model.bin', which is no" in line for line in refused), refused


def _replace_by_a_pickle(snapshot: Path, index: str, config: dict[str, str]) -> None:
    """Let the weights of a checkpoint be a pickle that cannot be opened."""
    names = list(load_file(snapshot / "model.safetensors"))
    (snapshot / "model.safetensors").unlink()
    os.mkfifo(snapshot / "adapter_model.bin")
    text = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "adapter_model.bin")})
    (snapshot / index).write_text(text)
    known = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps(known | config))


def test_a_distributed_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path)
    (tmp_path / "shard-00000-model-00001-of-00001.safetensors").touch()
    with pytest.raises(ModelLoadError, match="holds a distributed checkpoint"):
        load_policy(str(tmp_path))


# ------------------------------------------------------------------------------------------ images and text

_TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 14,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
_MLLAMA_VISION: dict[str, Any] = {
    "num_global_layers": 1,
    "attention_heads": 4,
    "max_num_tiles": 1,
    "intermediate_layers_indices": [0],
    "vision_output_dim": 64,
    "supported_aspect_ratios": [[1, 1]],
}
_LLAMA4_VISION: dict[str, Any] = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}

# model type -> what differs in its text, what differs in its vision, the rest
IMAGE_TEXT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (_MROPE, _QWEN_VISION, {"image_token_id": 300, "video_token_id": 301}),
    "qwen2_5_vl": (_MROPE, _QWEN_VISION, {"image_token_id": 300, "video_token_id": 301}),
    "qwen3_vl": (
        _MROPE,
        _QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        {"image_token_id": 300, "video_token_id": 301},
    ),
    "mistral3": ({"model_type": "mistral"}, _VISION | {"model_type": "pixtral", "head_dim": 8}, {}),
    "internvl": (
        {"model_type": "qwen2"},
        _VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        {"image_token_id": 300},
    ),
    "llava": ({"model_type": "llama"}, _VISION | {"model_type": "clip_vision_model"}, {"image_token_index": 300}),
    "glm4v": (
        {"rope_parameters": _MROPE["rope_parameters"] | {"partial_rotary_factor": 1.0}},
        _QWEN_VISION,
        {"image_token_id": 300, "video_token_id": 301},
    ),
    "gemma3": (
        {"sliding_window": 8, "query_pre_attn_scalar": 8},
        _VISION | {"model_type": "siglip_vision_model"},
        {"image_token_index": 300, "mm_tokens_per_image": 4},
    ),
    "mllama": (_ROPE | {"cross_attention_layers": [1]}, _VISION | _MLLAMA_VISION, {"image_token_index": 300}),
    "llama4": (
        {"num_local_experts": 2, "intermediate_size_mlp": 48},
        _VISION | _LLAMA4_VISION,
        {"image_token_index": 300},
    ),
}
SLOW = {"qwen2_vl", "internvl", "glm4v"}  # as qwen2_5_vl, llava and qwen3_vl put text and images together
_SEQUENCES = [TokenSequence((5, 6, 7, 8), (9, 10, 11)), TokenSequence((5, 6, 7, 8), tuple(range(20, 40)))]


def save_image_text(directory: Path, model_type: str) -> str:
    text, vision, rest = IMAGE_TEXT[model_type]
    config = AutoConfig.for_model(model_type, text_config=_TEXT | text, vision_config=vision, **rest)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def squared_gradients(model: PreTrainedModel, sequence: TokenSequence) -> dict[str, float]:
    """An independent loop in float64: name -> squared norm of the gradient, of every parameter that has one."""
    model.double().zero_grad()
    model.requires_grad_(True)
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    num_loss = len(sequence.completion_ids)
    logits_LV = model(input_ids=ids, use_cache=False).logits[0]
    nn.functional.cross_entropy(logits_LV[-num_loss - 1 : -1], ids[0, -num_loss:]).backward()
    return {
        name: parameter.grad.square().sum().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in IMAGE_TEXT]
)
def test_a_checkpoint_of_images_and_text_is_a_text_policy(model_type: str, tmp_path: Path) -> None:
    model = load_policy(save_image_text(tmp_path, model_type)).model
    engine = Engine(model, name=model_type, method="rules")
    scores = engine.score(_SEQUENCES).scores
    measured = {name for names in engine.info.rules.values() for name in names}
    assert not [name for name in measured if "vision" in name or "visual" in name or "projector" in name]
    for sequence, score in zip(_SEQUENCES, scores, strict=True):
        squares = squared_gradients(model, sequence)
        assert squares.keys() <= measured  # nothing that text reaches is left out
        assert score.grad_norm == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)


def test_the_vision_tower_is_measured_where_it_is_asked_for(tmp_path: Path) -> None:
    model = load_policy(save_image_text(tmp_path, "llava")).model
    of_text = Engine(model, name="llava", method="rules")
    assert of_text.info.media_token_ids == {300}
    expected = of_text.score(_SEQUENCES).scores[1].grad_norm
    everything = Engine(model, name="llava", parameters="all", method="rules")
    assert everything.info.num_measured_parameters == everything.info.num_parameters
    assert of_text.info.num_measured_parameters < everything.info.num_parameters
    assert everything.score(_SEQUENCES).scores[1].grad_norm == pytest.approx(expected, rel=1e-6)


def test_a_model_that_does_not_score_text_alone_is_refused_by_name(tmp_path: Path) -> None:
    text = {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    queries = {key: _VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = AutoConfig.for_model(
        "blip-2",
        text_config=text | sizes,
        vision_config=_VISION,
        qformer_config=queries | {"num_attention_heads": 4},
        image_token_index=300,
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="Blip2ForConditionalGeneration does not score text alone"):
        load_policy(str(tmp_path))


def test_the_row_of_the_padding_id_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    model = tiny_policy(families()["youtu"])  # whose row transformers sets to zero after it has read it
    row_D = model.get_input_embeddings().get_parameter("weight")[model.config.get_text_config().pad_token_id]
    assert row_D.any()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_policy(str(tmp_path), device="cpu").model
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
