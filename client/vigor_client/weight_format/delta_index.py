"""The index of a directory of changes, in slime's format: the two versions, and which file holds which tensor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation, ValidationError

INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32 << 20
"""Maximum size of an index that is read, in bytes: room for the names of more than 200,000 tensors."""


def _require_text(weight_map: dict[str, str]) -> dict[str, str]:
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - the type is not checked before
            raise ValueError(f"{name[:200]}: the name of a file should be text")
    return weight_map


WeightMap = Annotated[dict[str, SkipValidation[str]], AfterValidator(_require_text)]
"""Name of a tensor -> the file that holds it. Only the first fault is reported: a map may be large."""


class DeltaMetadata(BaseModel):
    """The encoding of the changes, and their two versions. Versions are numbers of six digits or more."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(pattern=r"^\d{1,16}$")
    base_version: str = Field(pattern=r"^\d{1,16}$")
    delta_encoding: Literal["overwrite"] = "overwrite"
    compression_format: Literal["zstd"] = "zstd"
    checksum_format: Literal["xxh3-128"] = "xxh3-128"


class DeltaIndex(BaseModel):
    """``model.safetensors.index.json`` of a directory of changes. Unknown members are ignored.

    Each file is a safetensors file with one list of bytes per tensor that changed (see ``encode_changes``) and, in its
    metadata, the checksum of that tensor's new bytes: the hexadecimal digits alone.
    """

    model_config = ConfigDict(frozen=True)

    metadata: DeltaMetadata
    weight_map: WeightMap = Field(description="Name of a tensor that changed -> the file with its changes.")

    @property
    def file_names(self) -> list[str]:
        """Every file that the index names, once."""
        return sorted(set(self.weight_map.values()))

    @classmethod
    def between(cls, base_version: int, version: int, weight_map: dict[str, str]) -> DeltaIndex:
        """Return the index of the changes from one version to another."""
        metadata = DeltaMetadata(version=f"{version:06d}", base_version=f"{base_version:06d}")
        return cls(metadata=metadata, weight_map=weight_map)


def is_index_of_delta(data: bytes) -> bool:
    """Return whether an index is one of changes; the index of a whole checkpoint has no ``delta_encoding``."""
    try:
        index = _AnyIndex.model_validate_json(data)
    except ValidationError:
        return True  # so that it is refused with its fault instead of being taken for a checkpoint
    return "delta_encoding" in index.metadata


class _AnyIndex(BaseModel):
    metadata: dict[str, object] = {}
