"""The wire contract of what the service says about itself: its model and its health."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vigor_client.schemas.common import WireModel


class ParameterRules(WireModel):
    """How many measured parameters one rule claims, and which."""

    rule: str
    num_parameters: int
    parameters: list[str]


class ModelInfo(WireModel):
    """``GET /v1/model``."""

    model: str
    architecture: str
    num_parameters: int
    num_measured_parameters: int
    dtype: str
    device: str
    max_sequence_tokens: int
    vocab_size: int
    tied_embeddings: bool
    layout: str = Field(description="How sequences share a batch: packed or single.")
    max_batch_tokens: int = Field(description="Tokens that a batch may have now: less after memory ran out.")
    norm_probes: int | None = Field(
        default=None, description="Random probes that estimate every norm; null: every norm is exact."
    )
    rules: list[ParameterRules]
    lora_scalings: dict[str, float] = Field(
        default={}, description="Layer with a LoRA adapter -> what its product is multiplied by."
    )
    product_libraries: dict[str, int] = Field(
        default={},
        description="Library of matrix products -> number of sizes that it multiplies, as measured until the service "
        "was ready.",
    )


class Health(WireModel):
    """``GET /healthz`` and ``GET /readyz``."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None
    phase: str | None = None
    detail: str | None = None
