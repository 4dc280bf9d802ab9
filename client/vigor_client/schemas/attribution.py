"""The wire contract of attribution: where one completion's gradient norm comes from.

A share is a part of ``grad_norm ** 2``; it may be negative, and is ``None`` where the norm is 0 or not finite.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from vigor_client.schemas.common import WireModel
from vigor_client.schemas.prompts import GivenPrompt
from vigor_client.schemas.scoring import AnyCompletion, Timing, WeightOptions

MAX_ATTRIBUTED_TOKENS = 1024
"""Maximum number of tokens of a prompt with its completion; more are refused."""

_EXAMPLE: JsonDict = {
    "messages": [{"role": "user", "content": "What is 3 + 4?"}],
    "completion": {"text": "3 + 4 = 7", "finish_reason": "stop"},
}


class AttributionRequest(GivenPrompt, WeightOptions):
    """``POST /v1/attribution``: one prompt with one completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    completion: AnyCompletion


class TokenShare(WireModel):
    """One token, and the share of the operations that ran at its position: there the next token is predicted."""

    id: int
    text: str | None = Field(
        description="What it adds to the text before it; null without a tokenizer. Of several tokens that make up one "
        "character the first has it, and the others have an empty text."
    )
    part: Literal["prompt", "completion"]
    in_loss: bool = Field(description="Whether its own prediction, made one position before, counts in the loss.")
    share: float | None


class ParameterShare(WireModel):
    """One measured parameter."""

    name: str
    share: float | None
    has_positions: bool = Field(description="False: its share is in `unresolved_share`, and in no token's.")


class LayerShare(WireModel):
    """A decoder layer, the embedding, the head, or another module by its path."""

    name: str = Field(examples=["layer 3"])
    share: float | None
    parameters: list[ParameterShare]


class AttributionResponse(WireModel):
    """Shares of one completion, taken under one version of the weights.

    Those of ``tokens`` and ``unresolved_share`` sum to 1, and so do those of ``layers``.
    """

    model: str
    weight_version: int
    weight_digest: str
    num_tokens: int = Field(description="T: tokens that count in the loss.")
    grad_norm: float | None = Field(description="L2 norm of the gradient of the mean negative log-likelihood.")
    scaled_grad_norm: float | None = Field(description="grad_norm times the square root of T.")
    tokens: list[TokenShare]
    layers: list[LayerShare]
    unresolved_share: float | None = Field(description="Of parameters whose uses cannot be told apart by position.")
    timing: Timing
