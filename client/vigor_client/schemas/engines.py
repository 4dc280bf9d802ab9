"""The wire contract of the engines that compute for a service."""

from __future__ import annotations

from pydantic import Field

from vigor_client.schemas.common import WireModel

MAX_ENGINES = 1024


class EngineState(WireModel):
    """One engine. Totals go on over its restarts."""

    number: int
    is_up: bool = Field(description="Whether it takes batches; else it is being started, or started again.")
    weight_version: int | None = Field(description="The version that it holds; null while it is not up.")
    num_batches: int
    busy_seconds: float
    num_restarts: int


class EngineList(WireModel):
    """``GET /v1/engines`` and the answer of ``PUT /v1/engines``: the engines that there should be."""

    engines: list[EngineState]

    @property
    def num_up(self) -> int:
        """Number of engines that take batches."""
        return sum(engine.is_up for engine in self.engines)


class ScaleRequest(WireModel):
    """``PUT /v1/engines``."""

    num_engines: int = Field(ge=1, le=MAX_ENGINES)
