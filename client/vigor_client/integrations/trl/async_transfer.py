"""Publishes the weights that TRL's AsyncGRPOTrainer streams to its inference server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from vigor_client.client import VigorClient
from vigor_client.publishing.snapshot import WeightSnapshot
from vigor_client.publishing.transports.weight_transport import WeightTransport

if TYPE_CHECKING:
    import torch

Weights = Iterator[tuple[str, "torch.Tensor"]]


class WeightTransfer(Protocol):
    """TRL's ``WeightTransferProtocol``."""

    def init_weight_transfer(self) -> None: ...
    def pause(self) -> None: ...
    def send_weights(self, iterator: Weights) -> None: ...
    def resume(self) -> None: ...
    def destroy(self) -> None: ...


class PublishingTransfer:
    """A ``weight_transfer`` that does what ``inner`` does, and publishes the same weights before generation resumes.

    Versions count from 1, as the trainer's ``model_version`` does. A copy of the model is kept in host memory.

    Args:
        inner: the transfer that sends the weights to the inference server.
        url: where the scoring service listens.
        snapshot, transport: as in ``VigorClient.publish_weights``.
        connect: makes the client: ``partial(VigorClient, timeout_seconds=900)``.

    Raises:
        VigorError: from ``send_weights``: the weights could not be published.
    """

    def __init__(
        self,
        inner: WeightTransfer,
        url: str,
        *,
        snapshot: WeightSnapshot | None = None,
        transport: WeightTransport | None = None,
        connect: Callable[[str], VigorClient] = VigorClient,
    ) -> None:
        self._inner = inner
        self._url = url
        self._snapshot = snapshot
        self._transport = transport
        self._connect = connect
        self._num_sent = 0

    def init_weight_transfer(self) -> None:
        self._inner.init_weight_transfer()

    def pause(self) -> None:
        self._inner.pause()

    def send_weights(self, iterator: Weights) -> None:
        copies: dict[str, torch.Tensor] = {}
        copied = _copying(iterator, copies)
        self._inner.send_weights(copied)
        for _ in copied:  # what ``inner`` did not read: other processes wait for it in collective operations
            pass
        self._num_sent += 1
        with self._connect(self._url) as client:
            client.publish_weights(
                copies, weight_version=self._num_sent, snapshot=self._snapshot, transport=self._transport
            )

    def resume(self) -> None:
        self._inner.resume()

    def destroy(self) -> None:
        self._inner.destroy()


def _copying(weights: Weights, copies: dict[str, torch.Tensor]) -> Weights:
    """Yield the weights, and put a copy of each, in host memory, into ``copies``."""
    for name, tensor in weights:
        copies[name] = tensor.detach().to("cpu", copy=True)
        yield name, tensor
