"""Checkpoint directories as a mapping of tensors."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

from tests.client.fake_service import FakeService
from tests.tiny_models import save_tiny_checkpoint, tiny_model
from vigor_client import CheckpointError, VigorClient, checkpoint_tensors, digest_of_tensors

SHARD = "model-00001-of-00002.safetensors"
OTHER_SHARD = "model-00002-of-00002.safetensors"


def save_sharded(directory: Path, **weight_map: str) -> Path:
    save_file({"a": torch.ones(2)}, directory / SHARD)
    save_file({"b": torch.zeros(3)}, directory / OTHER_SHARD)
    index = {"metadata": {}, "weight_map": weight_map or {"a": SHARD, "b": OTHER_SHARD}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_saved_model_is_read_back_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = checkpoint_tensors(save_tiny_checkpoint(tmp_path, "qwen2-tied"))
    parameters = dict(tiny_model("qwen2-tied").named_parameters())
    assert set(tensors) == set(parameters)
    assert len(tensors) == len(parameters)
    assert all(torch.equal(tensors[name], parameters[name]) for name in tensors)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    tensors = checkpoint_tensors(save_sharded(tmp_path))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [1.0, 1.0], "b": [0.0, 0.0, 0.0]}


def test_a_tensor_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="stranger"):
        checkpoint_tensors(save_sharded(tmp_path))["stranger"]


def empty(directory: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"a pickle")


def truncated(directory: Path) -> None:
    save_file({"a": torch.ones(100)}, directory / "model.safetensors")
    with (directory / "model.safetensors").open("r+b") as file:
        file.truncate(200)


def shard_missing(directory: Path) -> None:
    save_sharded(directory)
    (directory / OTHER_SHARD).unlink()


def tensor_missing(directory: Path) -> None:
    save_sharded(directory, a=SHARD, stranger=SHARD)


def shard_outside(directory: Path) -> None:
    save_sharded(directory, a="../model.safetensors")


def index_broken(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')


def index_of_numbers(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (empty, "holds neither model.safetensors nor model.safetensors.index.json"),
        (truncated, "model.safetensors cannot be read"),
        (shard_missing, f"{OTHER_SHARD} cannot be read"),
        (tensor_missing, f"names tensors that are not there: stranger in {SHARD}"),
        (shard_outside, "names a shard outside its directory"),
        (index_broken, "is not an index of shards"),
        (index_of_numbers, "is not an index of shards"),
    ],
)
def test_a_broken_checkpoint_is_refused_by_name(break_it: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    break_it(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        checkpoint_tensors(tmp_path)


def test_a_published_checkpoint_has_the_digest_that_was_computed_from_the_directory(tmp_path: Path) -> None:
    tensors = checkpoint_tensors(save_sharded(tmp_path))
    fake = FakeService({"a": torch.ones(2) * 2, "b": torch.ones(3).bfloat16()}, {"a": ["tied"]})
    expected = digest_of_tensors(tensors, fake.tensor_list())
    with VigorClient("http://service", transport=httpx.MockTransport(fake)) as client:
        published = client.publish_weights(tensors, weight_version=1)
    assert published.weight_digest == expected == fake.tensor_list().weight_digest
