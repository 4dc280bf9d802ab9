"""A checkpoint directory: the files that belong to the checkpoint, and its tensors, each read on access.

The files are those that transformers' ``from_pretrained`` reads; others beside them are ignored. safetensors only:
nothing in a checkpoint is ever executed. torch and safetensors are imported where a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from vigor_client.errors import CheckpointError, MissingDependencyError
from vigor_client.schemas.weights import MAX_UPDATE_FILES
from vigor_client.weight_format.delta_index import INDEX_NAME, MAX_INDEX_BYTES, WeightMap
from vigor_client.weight_format.safetensors_stream import OpenFile, TensorEntry, open_for_reading, read_header

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = INDEX_NAME
SHARD_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


class _Index(pydantic.BaseModel):
    metadata: dict[str, object] = {}
    weight_map: WeightMap


class _Config(pydantic.BaseModel):
    transformers_weights: str | None = None


class CheckpointTensors(Mapping[str, "torch.Tensor"]):
    """A read-only mapping from tensor name to tensor; keeps only names and files in memory."""

    def __init__(self, files: Sequence[Path], entries: Mapping[str, tuple[Path, TensorEntry]]) -> None:
        self.files = list(files)
        self.entries = entries  # name -> its file, and the tensor's place in it

    def __getitem__(self, name: str) -> torch.Tensor:
        with _open(self.entries[name][0]) as file:
            return file.get_tensor(name)

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Return ``self[name][rows]``, reading only these rows from the file."""
        with _open(self.entries[name][0]) as file:
            return file.get_slice(name)[rows]

    def __contains__(self, name: object) -> bool:  # Mapping's own method would read the tensor
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def checkpoint_tensors(directory: Path | str) -> CheckpointTensors:
    """Return the tensors of a directory's checkpoint, under their names on disk.

    Raises:
        CheckpointError: as ``checkpoint_files``; or a file cannot be read, or two files have the same tensor.
    """
    files = checkpoint_files(directory)
    entries: dict[str, tuple[Path, TensorEntry]] = {}
    for path in files:
        for name, entry in _header(path).items():
            if name in entries:
                raise CheckpointError(
                    f"{path} holds the tensor {name}, and so does {entries[name][0].name}; remove one of the two files"
                )
            entries[name] = path, entry
    return CheckpointTensors(files, entries)


def checkpoint_files(directory: Path | str, *, open_file: OpenFile = open_for_reading) -> list[Path]:
    """Return the safetensors files that transformers would load from a directory, in the order of their names.

    These are the file that its configuration names (``transformers_weights``), else ``model.safetensors``, else the
    shards of ``model.safetensors.index.json``. ``open_file`` opens each file that is read to find that out.

    Raises:
        CheckpointError: none of these files exists; the index does not fit its shards, or names files of another kind
            or outside the directory; or the directory holds an adapter, a distributed checkpoint, or only a delta.
    """
    directory = Path(directory)
    if not directory.is_dir():
        fault = "is not a directory" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory} {fault}; give the directory of a saved model")
    _refuse_other_kinds(directory)
    if (explicit := _named_in_config(directory, open_file)) is not None:
        return _indexed_files(explicit, open_file) if explicit.suffix == ".json" else [explicit]
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if (directory / INDEX_FILE).is_file():
        return _indexed_files(directory / INDEX_FILE, open_file)
    held = f"holds neither {SINGLE_FILE} nor {INDEX_FILE}" if any(directory.iterdir()) else "is empty"
    raise CheckpointError(f"{directory} {held}; give the directory of a model that was saved as safetensors")


def shard_names(index: Path, *, open_file: OpenFile = open_for_reading) -> dict[str, str]:
    """Return the file that an index names for each tensor. All are safetensors files in its directory; none is opened.

    Raises:
        CheckpointError: the index cannot be read, is not one of a whole checkpoint, or names another kind of file or
            place.
    """
    try:
        parsed = _Index.model_validate_json(_read(index, open_file))
    except pydantic.ValidationError as error:
        raise CheckpointError(f"{index} is not an index of shards") from error
    if "delta_encoding" in parsed.metadata:
        raise CheckpointError(f"{index} is the index of a delta, not of a whole model")
    for name in sorted(set(parsed.weight_map.values())):
        _refuse_other_names(name, index)
    return parsed.weight_map


def _refuse_other_kinds(directory: Path) -> None:
    if (directory / ADAPTER_CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{directory} holds a PEFT adapter, not a whole model: start the service with it, or save the merged model"
        )
    if any(_DISTRIBUTED_SHARD.fullmatch(path.name) for path in directory.glob("shard-*.safetensors")):
        raise CheckpointError(f"{directory} holds a distributed checkpoint: save the model with save_pretrained")


def _named_in_config(directory: Path, open_file: OpenFile) -> Path | None:
    if not (directory / CONFIG_FILE).is_file():
        return None
    try:
        config = _Config.model_validate_json(_read(directory / CONFIG_FILE, open_file))
    except pydantic.ValidationError as error:
        raise CheckpointError(f"{directory / CONFIG_FILE} is not the configuration of a model") from error
    if (name := config.transformers_weights) is None:
        return None
    if not name.endswith(INDEX_SUFFIX):
        _refuse_other_names(name, directory / CONFIG_FILE)
    elif Path(name).name != name:
        raise CheckpointError(f"{directory / CONFIG_FILE} names an index outside its directory: {name[:200]}")
    return directory / name


def _indexed_files(index: Path, open_file: OpenFile) -> list[Path]:
    weight_map = shard_names(index, open_file=open_file)
    shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    if len(shards) > MAX_UPDATE_FILES:
        raise CheckpointError(f"{index} names {len(shards)} files, at most {MAX_UPDATE_FILES} are read")
    names_in = {path.name: _header(path, open_file) for path in shards}
    lacking = [f"{name} in {shard}" for name, shard in weight_map.items() if name not in names_in[shard]]
    if lacking:
        raise CheckpointError(f"{index} names tensors that its shards do not hold: {', '.join(lacking[:5])}")
    return shards


def _refuse_other_names(name: str, source: Path) -> None:
    if Path(name).name != name:
        raise CheckpointError(f"{source} names a shard outside its directory: {name[:200]}")
    if not name.endswith(SHARD_SUFFIX):
        raise CheckpointError(
            f"{source} names {name[:200]!r}, which is no safetensors file; save the model as safetensors"
        )


def _read(path: Path, open_file: OpenFile) -> bytes:
    try:
        with open_file(path) as file:
            data = file.read(MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_INDEX_BYTES} bytes")
    return data


def _header(path: Path, open_file: OpenFile = open_for_reading) -> dict[str, TensorEntry]:
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} cannot be read: it is not a regular file")  # a pipe would never end
    try:
        return read_header(path, open_file=open_file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> Any:  # noqa: ANN401 - safetensors ships no types
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependencyError("safetensors and torch", extra="trainer", purpose="a checkpoint") from error
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
