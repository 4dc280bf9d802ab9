"""The last known weights of the service, kept in host memory so that the next update can send only changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vigor_client.publishing.tensor_reader import read
from vigor_client.schemas.weights import TensorList
from vigor_client.weight_format.delta import decode_changes
from vigor_client.weight_format.digest import raw_bytes

if TYPE_CHECKING:
    import torch

DEFAULT_ANCHOR_EVERY = 20


class WeightSnapshot:
    """The bytes of a whole model in the service's dtype, with their version and digest.

    It is empty until weights are published with it. Every ``anchor_every`` updates all weights are sent again (an
    anchor), since a service that restarts replays all updates after the last anchor.

    Raises:
        ValueError: ``anchor_every`` is not at least 1.
    """

    def __init__(self, *, anchor_every: int = DEFAULT_ANCHOR_EVERY) -> None:
        if anchor_every < 1:
            raise ValueError(f"anchor_every is {anchor_every}; give 1 or more, where 1 sends all weights every time")
        self._anchor_every = anchor_every
        self._num_since_anchor = 0
        self._bytes: dict[str, bytearray] = {}
        self.weight_version: int | None = None
        self.weight_digest: str | None = None

    def is_base(self, served: TensorList) -> bool:
        """Return whether changes from this snapshot may be sent to a service that holds these tensors."""
        is_same = (served.weight_version, served.weight_digest) == (self.weight_version, self.weight_digest)
        return is_same and self._num_since_anchor + 1 < self._anchor_every

    def of(self, name: str) -> memoryview:
        """Return the bytes of a tensor, by its canonical name."""
        return memoryview(self._bytes[name]).toreadonly()

    def take_all(
        self, tensors: Mapping[str, torch.Tensor], wanted: TensorList, *, weight_version: int, weight_digest: str
    ) -> None:
        """Become a copy of these tensors, which the service holds under this version and digest."""
        self.weight_version = self.weight_digest = None  # an interrupted copy must not be a base
        self._bytes = {info.name: bytearray(raw_bytes(read(tensors, info))) for info in wanted.tensors}
        self._num_since_anchor = 0
        self.weight_version, self.weight_digest = weight_version, weight_digest

    def take_changes(self, changes: Mapping[str, bytes], *, weight_version: int, weight_digest: str) -> None:
        """Apply the changes that were sent to the service, given by the canonical names of the tensors."""
        import numpy as np

        self.weight_version = self.weight_digest = None
        for name, compressed in changes.items():
            held = np.frombuffer(self._bytes[name], np.uint8)
            changed = decode_changes(compressed, num_bytes=len(held))
            held[changed.positions] = changed.values
        self._num_since_anchor += 1
        self.weight_version, self.weight_digest = weight_version, weight_digest
