"""Publishes the trainer's weights to the service: a whole model, or one with a LoRA adapter.

Stock TRL's `WeightPublisher` publishes whole models alone. When weights are due is decided by the same `StepPublisher`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from vigor_client import PublishResult, WeightSnapshot, WeightTransport
from vigor_client.integrations.trl.step_publisher import StepPublisher
from vigor_trainer.weights.lora import AdaptedModel
from vigor_trainer.weights.publishing_client import PublishingClient

if TYPE_CHECKING:
    import torch

PublishedWeights = Mapping[str, "torch.Tensor"] | AdaptedModel


class Publisher(StepPublisher[PublishedWeights]):
    """A `StepPublisher` with a client that stays connected. With a snapshot, only what changed is sent."""

    def __init__(
        self,
        client: PublishingClient,
        snapshot: WeightSnapshot | None = None,
        *,
        transport: WeightTransport | None = None,
    ) -> None:
        def publish(weights: PublishedWeights, step: int) -> PublishResult:
            send = (
                partial(client.publish_weights, weights)
                if isinstance(weights, Mapping)
                else partial(weights.publish, client)
            )
            return send(weight_version=step, snapshot=snapshot, transport=transport)

        super().__init__(publish)
