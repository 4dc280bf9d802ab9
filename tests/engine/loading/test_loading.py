"""Models come from safetensors, a GGUF file or a hub name; never from a pickle, never with code of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.preloaded_process import in_preloaded_process
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_checkpoint, save_tiny_hub_model, tiny_model, tiny_tokenizer
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.loading import ModelLoadError, load_policy, model_directory


def test_a_directory_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    policy = load_policy(str(save_tiny_checkpoint(tmp_path / "tiny")))
    assert policy.name == "tiny"
    assert policy.tokenizer.eos_token == "<|im_end|>"
    assert policy.model.dtype == torch.float32
    for name, parameter in tiny_model().named_parameters():
        assert torch.equal(policy.model.get_parameter(name), parameter)


def directory_of(name: str, cache: str) -> list[str]:
    """Return what ``model_directory`` does; for a process of its own, since its cache of the hub is this directory."""
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = cache, True
    directory, shown = model_directory(name)
    with pytest.raises(ModelLoadError, match="cannot load model 'someone/other'"):
        model_directory("someone/other")
    return [str(directory), shown]


def test_a_model_that_is_read_in_parts_is_a_directory_or_what_was_fetched_from_a_hub(tmp_path: Path) -> None:
    assert model_directory(str(tmp_path)) == (tmp_path, tmp_path.name)
    with pytest.raises(ModelLoadError, match="cannot load model '/no/such/model'"):
        model_directory("/no/such/model")
    fetched = save_tiny_hub_model(tmp_path, "someone/tiny")
    found = in_preloaded_process(directory_of, "someone/tiny", tmp_path)
    assert found == [str(fetched), "someone/tiny"]


def test_the_dtype_can_be_chosen(tmp_path: Path) -> None:
    directory = save_tiny_checkpoint(tmp_path)
    assert load_policy(str(directory), dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_directory_with_only_a_pickle_is_refused(tmp_path: Path) -> None:
    directory = save_tiny_checkpoint(tmp_path)
    torch.save(tiny_model().state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="cannot load model"):
        load_policy(str(directory))


def test_code_from_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    directory = save_tiny_checkpoint(tmp_path)
    config = directory / "config.json"
    config.write_text(
        config.read_text().replace("{", '{"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},', 1)
    )
    witness = tmp_path / "witness"
    (directory / "evil.py").write_text(f"open({str(witness)!r}, 'w')")
    load_policy(str(directory))
    assert not witness.exists()


def save_adapter(directory: Path, base: str, **options: Any) -> Path:  # noqa: ANN401 - what PEFT's config takes
    """Write an adapter of the tiny llama that names ``base``, as PEFT saves it; returns the directory."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **options)
    model = get_peft_model(tiny_model(), config)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(directory))
    return directory


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_is_loaded_over_the_base_that_it_names_and_measured_alone(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    policy = load_policy(str(save_adapter(tmp_path / "adapter", str(base), **options)))
    assert policy.name == "adapter"
    assert policy.tokenizer.eos_token == "<|im_end|>"
    engine = Engine(policy.model, name=policy.name)
    names = [name for group in engine.info.rules.values() for name in group]
    assert names
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert engine.info.num_measured_parameters == sum(tensor.numel() for tensor in saved.values())


def test_a_relative_base_is_found_beside_the_adapter_and_the_adapters_own_tokenizer_wins(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", str(base))
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(json.dumps(str(base)), '"../base"'))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(adapter)
    assert len(load_policy(str(adapter)).tokenizer) == len(tokenizer)


def test_an_adapter_that_cannot_be_loaded_is_refused_by_name(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", str(base))
    config = adapter / "adapter_config.json"
    text = config.read_text()
    for changed, message in [
        (text.replace('"LORA"', '"PREFIX_TUNING"'), "is of type 'PREFIX_TUNING': only LORA"),
        (text.replace(json.dumps(str(base)), "null"), "names no base model"),
        (text.replace(json.dumps(str(base)), '"/no/such/base"'), "/no/such/base"),
        (
            text.replace(json.dumps(str(base)), json.dumps(str(adapter))),
            "as its base, which is an adapter: name a model",
        ),
        ("{", "cannot read"),
        ("[]", "cannot read"),
    ]:
        config.write_text(changed)
        with pytest.raises(ModelLoadError, match=message):
            load_policy(str(adapter))
    config.write_text(text)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="has no adapter_model"):
        load_policy(str(adapter))


def test_an_adapter_without_peft_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = save_adapter(tmp_path / "adapter", str(save_tiny_checkpoint(tmp_path / "base")))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelLoadError, match="needs peft: pip install peft"):
        load_policy(str(adapter))


@pytest.mark.parametrize("source", ["/no/such/directory", "/no/such/file.gguf"])
def test_a_model_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ModelLoadError, match=source):
        load_policy(source)


def test_an_unknown_dtype_or_device_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="dtype 'int3' is not one of auto, float32"):
        load_policy(str(tmp_path), dtype="int3")
    with pytest.raises(ModelLoadError, match="device 'abacus' cannot be used"):
        load_policy(str(tmp_path), device="abacus")


def save_adapter_with_added_tokens(directory: Path, base: Path, **options: Any) -> nn.Module:  # noqa: ANN401
    """Write an adapter whose embeddings were resized for two more tokens, as PEFT saves it; returns its model."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(VOCAB_SIZE + 2, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(directory), **options)
    return adapted


@pytest.mark.parametrize("family", ["llama", "qwen2-tied"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_with_added_tokens_resizes_its_base(family: str, tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base", family)
    trained = save_adapter_with_added_tokens(tmp_path / "adapter", base)
    loaded = load_policy(str(tmp_path / "adapter")).model
    assert loaded.get_input_embeddings().get_parameter("weight").shape[0] == VOCAB_SIZE + 2
    expected = trained.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_adapter_without_the_rows_of_its_added_tokens_is_refused(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    save_adapter_with_added_tokens(tmp_path / "adapter", base, save_embedding_layers=True)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"it has embeddings of \[322\] rows, the base of 320"):
        load_policy(str(tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    path = save_adapter(tmp_path / "adapter", str(base)) / "adapter_model.safetensors"
    tensors = load_file(path)
    lost = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"lacks 1 tensors, such as {lost}"):
        load_policy(str(tmp_path / "adapter"))
    stranger = lost.replace("layers.1", "layers.7")
    save_file(tensors | {stranger: torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=f"has no place for 1 tensors, such as {stranger}"):
        load_policy(str(tmp_path / "adapter"))
