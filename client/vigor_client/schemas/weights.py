"""The wire contract of weights: what serves, and updates of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vigor_client.schemas.common import Checksum, WeightVersion, WireModel
from vigor_client.schemas.fault_limit import Item

MAX_UPDATE_FILES = 4096
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", examples=["model.safetensors"])]
WeightState = Literal["ready", "applying", "poisoned"]
UpdateState = Literal["receiving", "verifying", "applying", "committed"]
UpdateEncoding = Literal["full", "checkpoint", "partial", "delta"]
WHOLE_ENCODINGS: frozenset[UpdateEncoding] = frozenset({"full", "checkpoint"})  # encodings that need no base
BroadcastBackend = Literal["gloo", "nccl"]


class UpdateProgress(WireModel):
    """An update that is under way: how far it is on its way to serve."""

    weight_version: int
    state: UpdateState
    received_bytes: int = Field(description="Bytes of its files that have arrived.")
    num_bytes: int = Field(description="Bytes of its files, as they were announced.")


class WeightsInfo(WireModel):
    """``GET /v1/weights``: what the service scores with now."""

    weight_version: int
    weight_digest: str
    state: WeightState
    num_tensors: int
    num_bytes: int
    dtype: str = Field(description="The model's dtype, or `mixed`.", examples=["float32"])
    published_at: str = Field(description="When these weights began to serve, ISO 8601, UTC.")
    update: UpdateProgress | None = Field(default=None, description="The update under way; null without one.")


class TensorInfo(WireModel):
    """One tensor the trainer must supply. Tied tensors stand once, under their canonical name."""

    name: str
    dtype: str = Field(examples=["float32", "bfloat16"])
    shape: list[int]
    checksum: str = Field(description="xxh3-128 of the raw little-endian bytes.")
    aliases: list[str] = Field(default=[], description="Other names of the same tied tensor.")

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the tensor, the canonical one first."""
        return (self.name, *self.aliases)


class TensorList(WireModel):
    """``GET /v1/weights/tensors``."""

    weight_version: int
    weight_digest: str
    tensors: list[TensorInfo]


class UpdateFile(WireModel):
    """One file of an update, announced before its bytes are sent."""

    name: FileName
    num_bytes: int = Field(strict=True, gt=0)
    checksum: Checksum


class UpdateRequest(WireModel):
    """``POST /v1/weights/updates``: open an update. The trainer names the version."""

    weight_version: WeightVersion
    base_version: WeightVersion | None = Field(default=None, description="The version the update was made from.")
    base_digest: Checksum | None = Field(default=None, description="The digest of the weights it was made from.")
    encoding: UpdateEncoding = Field(
        default="full",
        description="`full` holds the model's tensors, `checkpoint` those of a checkpoint as it is saved, `partial` "
        "some of the base's tensors anew, `delta` the bytes that changed.",
    )
    files: list[Item[UpdateFile]] = Field(min_length=1, max_length=MAX_UPDATE_FILES)

    @model_validator(mode="after")
    def _check_file_names_differ(self) -> Self:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        return self

    @model_validator(mode="after")
    def _check_base_is_named(self) -> Self:
        if self.encoding not in WHOLE_ENCODINGS and (self.base_version is None or self.base_digest is None):
            raise ValueError(
                f"a {self.encoding} update needs `base_version` and `base_digest`: without its base it means nothing"
            )
        return self


class TakeRequest(WireModel):
    """``POST /v1/weights/updates/{id}/take``: the files lie where the service can reach them."""

    directory: str = Field(min_length=1, max_length=4096, description="Absolute, or from the service's --weights-root.")


class UpdateStatus(WireModel):
    """The state of one update."""

    update_id: str
    weight_version: int
    state: UpdateState
    received_files: list[str] = Field(default=[])
    missing_files: list[str] = Field(default=[])


class BroadcastRequest(WireModel):
    """``POST /v1/weights/updates/{id}/broadcast``: where the caller sends the bytes of the missing files."""

    backend: BroadcastBackend
    host: str = Field(pattern=r"^[A-Za-z0-9._:-]{1,253}$", examples=["10.0.0.5"])
    port: int = Field(strict=True, ge=1, le=65535)


class CommitResponse(WireModel):
    """``POST /v1/weights/updates/{id}/commit``: the update serves now."""

    weight_version: int
    weight_digest: str
    num_changed_tensors: int
    verify_seconds: float
    swap_seconds: float
