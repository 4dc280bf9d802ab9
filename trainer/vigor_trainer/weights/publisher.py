"""Publishes the trainer's weights to the service, by the same rules as for TRL's own trainers."""

from __future__ import annotations

from vigor_client import PublishResult, WeightSnapshot, WeightTransport
from vigor_client.integrations.trl.step_publisher import StepPublisher
from vigor_client.publishing.adapted_model import PublishedWeights, PublishingClient, publish_model


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
            return publish_model(client, weights, weight_version=step, snapshot=snapshot, transport=transport)

        super().__init__(publish)
