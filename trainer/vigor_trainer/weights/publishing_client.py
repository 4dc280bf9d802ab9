"""What publishing needs of the service's client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from vigor_client import PublishResult, WeightSnapshot, WeightTransport
from vigor_client.schemas.service import ModelInfo
from vigor_client.schemas.weights import TensorList

if TYPE_CHECKING:
    import torch


class PublishingClient(Protocol):
    """What is needed of `VigorClient`."""

    def model(self) -> ModelInfo: ...

    def tensors(self) -> TensorList: ...

    def publish_weights(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        weight_version: int,
        snapshot: WeightSnapshot | None = None,
        partial: bool = False,
        transport: WeightTransport | None = None,
    ) -> PublishResult: ...
