"""Models come from safetensors, a GGUF file or a hub name; never from a pickle, never with code of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny_checkpoint, tiny_model
from vigor_service.engine.loading import ModelLoadError, load_policy


def test_a_directory_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    policy = load_policy(str(save_tiny_checkpoint(tmp_path / "tiny")))
    assert policy.name == "tiny"
    assert policy.tokenizer.eos_token == "<|im_end|>"
    assert policy.model.dtype == torch.float32
    for name, parameter in tiny_model().named_parameters():
        assert torch.equal(policy.model.get_parameter(name), parameter)


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


@pytest.mark.parametrize("source", ["/no/such/directory", "/no/such/file.gguf"])
def test_a_model_that_is_not_there_is_named(source: str) -> None:
    with pytest.raises(ModelLoadError, match=source):
        load_policy(source)


def test_an_unknown_dtype_or_device_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="dtype 'int3' is not one of auto, float32"):
        load_policy(str(tmp_path), dtype="int3")
    with pytest.raises(ModelLoadError, match="device 'abacus' cannot be used"):
        load_policy(str(tmp_path), device="abacus")
