"""Checkpoint directories as a mapping of tensors."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.client.cli.command_line_fake import FakeOnASocket
from tests.client.fake_service import FakeService
from tests.support.tiny_models import save_tiny_checkpoint, tiny_model
from vigor_client import CheckpointError, VigorClient, checkpoint_tensors, digest_of_tensors
from vigor_client.publishing.checkpoint_plan import make_checkpoint_plan
from vigor_client.publishing.progress import ProgressReport
from vigor_client.weight_format.checkpoint_files import checkpoint_files
from vigor_client.weight_format.delta_index import MAX_INDEX_BYTES

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


def shard_is_pickle(directory: Path) -> None:
    """Also a valid safetensors file: only its name tells."""
    save_sharded(directory, a="pytorch_model.bin")
    save_file({"a": torch.ones(2)}, directory / "pytorch_model.bin")


def weights_are_pickle(directory: Path) -> None:
    save_file({"a": torch.ones(2)}, directory / "adapter_model.bin")
    (directory / "config.json").write_text('{"transformers_weights": "adapter_model.bin"}')


def index_outside(directory: Path) -> None:
    (directory / "config.json").write_text('{"transformers_weights": "../x.safetensors.index.json"}')


def nothing(directory: Path) -> None:
    assert not list(directory.iterdir())


def no_directory(directory: Path) -> None:
    directory.rmdir()


def a_file(directory: Path) -> None:
    directory.rmdir()
    directory.write_text("")


def index_huge(directory: Path) -> None:
    with (directory / "model.safetensors.index.json").open("wb") as file:
        file.truncate(MAX_INDEX_BYTES + 1)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (empty, "holds neither model.safetensors nor model.safetensors.index.json"),
        (nothing, "is empty; give the directory of a model that was saved as safetensors"),
        (no_directory, "does not exist; give the directory of a saved model"),
        (a_file, "is not a directory; give the directory of a saved model"),
        (truncated, "model.safetensors cannot be read"),
        (shard_missing, f"{OTHER_SHARD} cannot be read"),
        (tensor_missing, f"names tensors that its shards do not hold: stranger in {SHARD}"),
        (shard_outside, "names a shard outside its directory"),
        (index_broken, "is not an index of shards"),
        (index_of_numbers, "is not an index of shards"),
        (shard_is_pickle, "names 'pytorch_model.bin', which is no safetensors file"),
        (weights_are_pickle, "names 'adapter_model.bin', which is no safetensors file"),
        (index_outside, "names an index outside its directory"),
        (index_huge, f"is larger than {MAX_INDEX_BYTES} bytes"),
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


# ------------------------------------------------------------------------------------------ which files


def test_of_two_layouts_the_one_is_taken_that_transformers_loads(tmp_path: Path) -> None:
    served = save_tiny_checkpoint(tmp_path / "served")
    twice = tmp_path / "twice"
    for factor, shard_size in ((2.0, "30KB"), (3.0, "10MB")):
        model = AutoModelForCausalLM.from_pretrained(served, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        model.save_pretrained(tmp_path / str(factor), max_shard_size=shard_size)
        shutil.copytree(tmp_path / str(factor), twice, dirs_exist_ok=True)
    assert len(list(twice.glob("*.safetensors"))) > 2
    assert [path.name for path in checkpoint_files(twice)] == ["model.safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(twice, dtype=torch.float32).state_dict()
    tensors = checkpoint_tensors(twice)
    assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)


def test_files_beside_the_index_and_its_shards_are_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    for name in ("consolidated.safetensors", "model-00001-of-00007.safetensors"):
        save_file({"stale": torch.ones(1)}, tmp_path / name)
    assert [path.name for path in checkpoint_files(tmp_path)] == [SHARD, OTHER_SHARD]
    assert set(checkpoint_tensors(tmp_path)) == {"a", "b"}


def test_a_file_that_the_configuration_names_comes_first(tmp_path: Path) -> None:
    save_file({"old": torch.ones(1)}, tmp_path / "model.safetensors")
    save_file({"new": torch.ones(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text('{"transformers_weights": "weights.safetensors"}')
    assert set(checkpoint_tensors(tmp_path)) == {"new"}


def adapter(directory: Path) -> None:
    save_file({"a": torch.ones(2)}, directory / "model.safetensors")
    (directory / "adapter_config.json").write_text("{}")


def distributed(directory: Path) -> None:
    save_file({"a": torch.ones(2)}, directory / "model.safetensors")
    (directory / "shard-00000-model-00001-of-00002.safetensors").touch()


def changes_alone(directory: Path) -> None:
    save_sharded(directory)
    index = {"metadata": {"delta_encoding": "overwrite"}, "weight_map": {"a": SHARD}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def tensor_twice(directory: Path) -> None:
    save_sharded(directory)
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, directory / OTHER_SHARD)


def pipe(directory: Path) -> None:
    save_sharded(directory)
    (directory / SHARD).unlink()
    os.mkfifo(directory / SHARD)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (adapter, "holds a PEFT adapter, not a whole model"),
        (distributed, "holds a distributed checkpoint"),
        (changes_alone, "is the index of a delta"),
        (tensor_twice, f"holds the tensor a, and so does {SHARD}"),
        (pipe, "it is not a regular file"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused_by_name(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        checkpoint_tensors(tmp_path)


# ------------------------------------------------------------------------------------------ publishing


def test_a_checkpoint_is_sent_as_it_is_and_without_torch(tmp_path: Path) -> None:
    save_sharded(tmp_path)
    fake = FakeService({"a": torch.ones(2) * 2, "b": torch.ones(3)})
    with FakeOnASocket(fake) as server, ThreadPoolExecutor(1) as threads:
        threads.submit(server.serve_forever)
        push = [f"push {tmp_path} --url {server.url} --weight-version {version}".split() for version in (1, 2)]
        program = (
            "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
            f"from vigor_client.cli.main import main; sys.exit(main({push[0]}) or main({push[1]}))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("published version 1")
    assert "nothing sent: the service has these weights already (version 1" in done.stdout
    assert [call for call in fake.calls if call.startswith("PUT")] == [
        f"PUT /v1/weights/updates/u1/files/{name}" for name in (SHARD, OTHER_SHARD)
    ]


@pytest.mark.parametrize(
    "served",
    [
        {"a": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1)},
        {"a": torch.ones(2), "b": torch.zeros(3).bfloat16()},
        {"a": torch.ones(2), "b": torch.zeros(1, 3)},
        {"a": torch.ones(2), "b": -torch.zeros(3)},
    ],
)
def test_only_the_very_tensors_of_the_service_are_not_sent(served: dict[str, torch.Tensor], tmp_path: Path) -> None:
    plan = make_checkpoint_plan(
        checkpoint_tensors(save_sharded(tmp_path)), FakeService(served).tensor_list(), ProgressReport(None)
    )
    assert plan.weight_digest is None


def test_a_tied_tensor_under_any_of_its_names_is_the_services(tmp_path: Path) -> None:
    wanted = FakeService({"head": torch.ones(2), "b": torch.zeros(3)}, {"head": ["a"]}).tensor_list()
    plan = make_checkpoint_plan(checkpoint_tensors(save_sharded(tmp_path)), wanted, ProgressReport(None))
    assert plan.weight_digest == wanted.weight_digest
