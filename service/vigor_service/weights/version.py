"""Descriptions of the served weights, and of the weights that a score may require. No tensors and no files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from vigor_client.schemas.weights import TensorInfo
from vigor_service.errors import ServiceError, WeightDigestMismatchError, WeightVersionMismatchError


@dataclass(frozen=True, slots=True)
class Weights:
    """One published state of the model: its version (name), its digest (content), and its tensors."""

    version: int
    digest: str
    tensors: tuple[TensorInfo, ...]
    num_bytes: int
    dtype: str
    published_at: datetime


@dataclass(frozen=True, slots=True)
class WeightRequirement:
    """The weights from which a score must come. None accepts any version or digest."""

    version: int | None = None
    digest: str | None = None

    def unmet_by(self, weights: Weights) -> ServiceError | None:
        """Return the error if these weights do not meet the requirement, else None."""
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
