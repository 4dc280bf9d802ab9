"""The weights that serve, and those that a score may require. Plain values: no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from vigor_client.schemas.weights import TensorInfo
from vigor_service.errors import ServiceError, WeightDigestMismatchError, WeightVersionMismatchError


@dataclass(frozen=True, slots=True)
class Weights:
    """One published state of the model: its name (version), its content (digest), its parts."""

    version: int
    digest: str
    tensors: tuple[TensorInfo, ...]
    num_bytes: int
    dtype: str
    published_at: datetime


@dataclass(frozen=True, slots=True)
class WeightRequirement:
    """The weights that a score must come from; None stands for any."""

    version: int | None = None
    digest: str | None = None

    def unmet_by(self, weights: Weights) -> ServiceError | None:
        """Return why these weights will not do, None if they do."""
        if self.version is not None and self.version != weights.version:
            return WeightVersionMismatchError(
                f"version {weights.version} is served, {self.version} was asked for",
                have=weights.version,
                want=self.version,
            )
        if self.digest is not None and self.digest != weights.digest:
            return WeightDigestMismatchError(
                f"version {weights.version} is served with digest {weights.digest}, {self.digest} was asked for",
                have=weights.digest,
                want=self.digest,
            )
        return None
