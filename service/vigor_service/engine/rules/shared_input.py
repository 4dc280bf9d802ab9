"""The input that several linear layers take, such as q, k and v, or gate and up."""

from __future__ import annotations

import weakref

from torch import Tensor

from vigor_service.engine.memory.rematerialization import Kept, Rematerialization, restore
from vigor_service.engine.ops.gram import weighted_gram_blocks


class LinearInput:
    """An input A (N, I), kept until the backward pass of the last layer that takes it; so is AAᵀ of each sequence."""

    def __init__(self, kept: Kept) -> None:
        self._kept: Kept | None = kept
        self._rows_NI: Tensor | None = None
        self._grams: dict[int, list[Tensor]] = {}
        self._num_layers = 0
        self.num_outputs = 0  # of all its layers

    def add_layer(self, num_outputs: int) -> None:
        """Count, in the forward pass, a layer with this number of outputs that takes the input."""
        self._num_layers += 1
        self.num_outputs += num_outputs

    def rows_NI(self) -> Tensor:
        """Return the input's rows."""
        rows_NI = restore(self._kept).flatten(0, -2) if self._rows_NI is None else self._rows_NI
        self._rows_NI = rows_NI
        return rows_NI

    def gram_blocks(self, sequence: int, rows: slice) -> list[Tensor]:
        """Return ``weighted_gram_blocks`` of a sequence's rows."""
        if sequence not in self._grams:
            self._grams[sequence] = weighted_gram_blocks(self.rows_NI()[rows])
        return self._grams[sequence]

    def release(self) -> None:
        """Count a layer whose backward pass is done; after the last one the input is released."""
        self._num_layers -= 1
        if not self._num_layers:
            self._kept, self._rows_NI, self._grams = None, None, {}


class LinearInputs:
    """Finds the input that a layer shares with others."""

    def __init__(self, rematerialization: Rematerialization) -> None:
        self._rematerialization = rematerialization
        self._of_tensor: dict[int, LinearInput] = {}

    def of(self, x: Tensor) -> LinearInput:
        """Return the ``LinearInput`` of this tensor object; all layers that take the tensor get the same one."""
        key = id(x)
        if key not in self._of_tensor:
            self._of_tensor[key] = LinearInput(self._rematerialization.keep(x))
            weakref.finalize(x, self._of_tensor.pop, key)
        return self._of_tensor[key]
