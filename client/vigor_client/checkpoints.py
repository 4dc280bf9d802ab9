"""The tensors of a checkpoint directory, as Hugging Face lays it out, each read when it is asked for.

safetensors only: nothing in a checkpoint is ever executed. torch and safetensors are imported on first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from vigor_client.errors import CheckpointError, MissingDependencyError

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class _Index(pydantic.BaseModel):
    weight_map: dict[str, str]


class CheckpointTensors(Mapping[str, "torch.Tensor"]):
    """A read-only mapping from tensor name to tensor; holds nothing but names and files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> torch.Tensor:
        with _open(self._files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def checkpoint_tensors(directory: Path | str) -> CheckpointTensors:
    """The tensors of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` names.

    Raises:
        CheckpointError: neither file is there, or one cannot be read, or the index does not fit its shards.
        MissingDependencyError: safetensors or torch is not installed.
    """
    directory = Path(directory)
    if (directory / INDEX_FILE).is_file():
        return CheckpointTensors(_indexed_files(directory))
    if (directory / SINGLE_FILE).is_file():
        return CheckpointTensors(dict.fromkeys(_names_in(directory / SINGLE_FILE), directory / SINGLE_FILE))
    raise CheckpointError(f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}; give a whole saved model")


def _indexed_files(directory: Path) -> dict[str, Path]:
    index = directory / INDEX_FILE
    try:
        shard_by_name = _Index.model_validate_json(index.read_bytes()).weight_map
    except (OSError, pydantic.ValidationError) as error:
        raise CheckpointError(f"{index} is not an index of shards") from error
    names_by_shard = {shard: set(_names_in(_shard(directory, shard))) for shard in sorted(set(shard_by_name.values()))}
    lacking = [f"{name} in {shard}" for name, shard in shard_by_name.items() if name not in names_by_shard[shard]]
    if lacking:
        raise CheckpointError(f"{index} names tensors that are not there: {', '.join(lacking[:5])}")
    return {name: directory / shard for name, shard in shard_by_name.items()}


def _shard(directory: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{directory / INDEX_FILE} names a shard outside its directory: {name}")
    return directory / name


def _names_in(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def _open(path: Path) -> Any:  # noqa: ANN401 - safetensors ships no types
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError("safetensors and torch", extra="trainer", purpose="a checkpoint") from error
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
