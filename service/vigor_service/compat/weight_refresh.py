"""The shapes of SGLang's and slime's calls that refresh weights. Unknown fields are refused, as everywhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vigor_client.schemas.common import WeightVersion


def _number(value: object) -> object:
    """Return a version as a number: SGLang and slime write it as text."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


NumberOrText = Annotated[WeightVersion, BeforeValidator(_number)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class UpdateFromDisk(_Asked):
    """``POST /update_weights_from_disk``. Fields for which only one value makes sense here accept no other value."""

    model_path: str
    weight_version: NumberOrText
    load_format: Literal["auto", "safetensors"] | None = None
    abort_all_requests: Literal[False] = Field(
        default=False, description="Requests in progress always finish, with the weights that they began with."
    )
    is_async: Literal[False] = False
    keep_pause: Literal[False] = False
    flush_cache: bool = Field(
        default=True, description="No effect: cached scores hold for one version of the weights only."
    )
    torch_empty_cache: bool = Field(default=False, description="No effect.")
    recapture_cuda_graph: bool = Field(default=False, description="No effect: the service captures no CUDA graph.")
    token_step: int = Field(default=0, description="No effect.")


class PullWeights(_Asked):
    """``POST /pull_weights``."""

    source_dir: str
    target_version: NumberOrText
    local_checkpoint_dir: str | None = Field(
        default=None, description="No effect: the service keeps weights in its --state-dir."
    )


class Outcome(BaseModel):
    """Response to both calls."""

    success: bool
    message: str
    num_paused_requests: int = 0


class SGLangModelInfo(BaseModel):
    """``GET /model_info``."""

    model_config = ConfigDict(protected_namespaces=())

    model_path: str
    tokenizer_path: str
    is_generation: bool = False
    preferred_sampling_params: None = None
    weight_version: str
    weight_digest: str
