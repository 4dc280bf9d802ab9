"""Weights of a sharded model: read from a checkpoint in parts, written in parts, read whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.cases import difficult_sequences
from tests.support.ranks import RankProcesses, rank_processes
from tests.support.tiny_models import save_tiny_checkpoint
from vigor_client.weight_format.delta import Changes
from vigor_client.weight_format.writes import Copy, Patch
from vigor_service.engine.engine import Engine
from vigor_service.engine.loading.checkpoint import IncompleteCheckpointError
from vigor_service.engine.loading.loading import load_policy
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.sharding.engine import ShardedEngine
from vigor_service.engine.sharding.ranks import Ranks
from vigor_service.engine.sharding.streaming import load_sharded
from vigor_service.engine.sharding.units import UnshardableModelError
from vigor_service.weights.verification.fingerprint import initial_weights

CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen2-tied", "qwen3_moe", "gpt2", "gemma2"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    with rank_processes(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


def load(ranks: Ranks, directory: Path, dtype: torch.dtype = torch.float32) -> ShardedEngine:
    model, architecture, names = load_sharded(
        directory,
        ranks,
        dtype=dtype,
        device=CPU,
        trust_remote_code=False,
        names_of=lambda model: list(measured_parameters(model)),
    )
    return ShardedEngine(model, ranks, names, name="tiny", architecture=architecture)


def norms_and_digest(ranks: Ranks, directory: Path) -> tuple[list[float], str, str, int]:
    engine = load(ranks, directory)
    norms = [score.grad_norm for score in engine.score(difficult_sequences()).scores]
    return norms, initial_weights(engine).digest, engine.info.architecture, engine.num_local_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_in_parts_is_the_model_that_transformers_loads(
    two: RankProcesses, family: str, tmp_path: Path
) -> None:
    directory = save_tiny_checkpoint(tmp_path, family)
    policy = load_policy(str(directory), device="cpu")
    whole = Engine(policy.model, name="tiny", method="reference")
    wanted = [score.grad_norm for score in whole.score(difficult_sequences()).scores]
    for norms, digest, architecture, num_bytes in two.run(norms_and_digest, directory):
        assert norms == pytest.approx(wanted, rel=1e-5, abs=1e-9, nan_ok=True)
        assert digest == initial_weights(whole).digest
        assert architecture == whole.info.architecture
        assert num_bytes < 0.6 * 4 * whole.info.num_parameters


def write(ranks: Ranks, directory: Path, writes: list[tuple[str, Copy | Patch]]) -> Mapping[str, Tensor]:
    engine = load(ranks, directory)
    engine.load(writes)
    return {name: tensor.clone() for name, tensor in engine.tensors().items()}


def test_copies_and_patches_change_the_rows_of_each_rank(two: RankProcesses, tmp_path: Path) -> None:
    directory = save_tiny_checkpoint(tmp_path, "llama")
    wanted = load_file(directory / "model.safetensors")
    up, norm, head = "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"
    writes: list[tuple[str, Copy | Patch]] = [(norm, Copy(wanted[norm] + 1)), (head, Copy(-wanted[head]))]
    half = wanted[up].nbytes // 2
    positions = np.array([0, 5, half - 1, half, half + 7, wanted[up].nbytes - 1], np.uint32)
    writes.append((up, Patch(Changes(positions, np.arange(6, dtype=np.uint8)))))
    for name, each in writes:
        each(wanted[name])
    for found in two.run(write, directory, writes):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def refuse_shape(ranks: Ranks, directory: Path) -> None:
    engine = load(ranks, directory)
    with pytest.raises(RuntimeError, match=r"values of shape \[1\] for a tensor of \[32\]"):
        engine.load([("model.norm.weight", Copy(torch.ones(1)))])
    with pytest.raises(TypeError, match="must be a Copy or a Patch"):
        engine.load([("model.norm.weight", lambda _tensor: None)])


def test_a_write_that_does_not_fit_is_refused(two: RankProcesses, tmp_path: Path) -> None:
    two.run(refuse_shape, save_tiny_checkpoint(tmp_path, "llama"))


def refuse(ranks: Ranks, directory: Path, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        load(ranks, directory)


def test_a_checkpoint_that_lacks_a_tensor_or_is_no_directory_is_refused_by_name(
    two: RankProcesses, tmp_path: Path
) -> None:
    two.run(refuse, tmp_path / "nothing", UnshardableModelError, r"--shard .* loads a directory with a whole model")
    directory = save_tiny_checkpoint(tmp_path / "lacking", "llama")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    two.run(refuse, directory, IncompleteCheckpointError, r"it lacks model\.norm\.weight")
    other = save_tiny_checkpoint(tmp_path / "other", "llama")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    two.run(refuse, other, IncompleteCheckpointError, r"model\.norm\.weight has shape \[31\], the model's \[32\]")
