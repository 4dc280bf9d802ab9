"""Publishes the trainer's weights to the service, in the background.

Why that is safe while completions are generated: generation reads weights, and the optimizer cannot step before the
publication has ended, because the loss needs rewards and the score request waits for the publication.
Knows nothing about TRL, nor about when to publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vigor_client import PublishResult, WeightSnapshot, WeightTransport
from vigor_trainer.weights.publishing_client import PublishingClient

if TYPE_CHECKING:
    import torch

    from vigor_trainer.weights.lora import AdaptedModel


class Publisher:
    """One publication at a time, on a thread of its own; with a snapshot, what changed alone is sent."""

    def __init__(
        self,
        client: PublishingClient,
        snapshot: WeightSnapshot | None = None,
        *,
        transport: WeightTransport | None = None,
    ) -> None:
        self._client = client
        self._snapshot = snapshot
        self._transport = transport
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish-weights")
        self._publication: Future[PublishResult] | None = None

    def begin(self, weights: Mapping[str, torch.Tensor] | AdaptedModel, weight_version: int) -> None:
        """Start to publish; nothing is sent when the service has these weights already.

        The tensors must not change before `wait` has returned.
        """
        publish = (
            partial(self._client.publish_weights, weights)
            if isinstance(weights, Mapping)
            else partial(weights.publish, self._client)
        )
        self._publication = self._worker.submit(
            publish, weight_version=weight_version, snapshot=self._snapshot, transport=self._transport
        )

    def wait(self) -> PublishResult:
        """Return the publication begun last, once it serves.

        Raises:
            RuntimeError: nothing was begun.
            whatever stopped it: the client's errors.
        """
        if self._publication is None:
            raise RuntimeError("begin() comes before wait()")
        return self._publication.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(cancel_futures=True)
