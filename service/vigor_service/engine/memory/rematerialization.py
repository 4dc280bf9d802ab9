"""Rematerialization: cheap results are computed again in the backward pass instead of being kept until then.

The result of an elementwise operation is a function of tensors that are kept anyway, mostly outputs of linear layers.
Examples are a normalised hidden state, the activation of a gate, and its product with another layer's output. Half of
what autograd keeps of a transformer are such results. No matrix product and no attention is computed twice here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

# Out of place, without randomness, and cheap. Sums of two tensors are not among them: their operands are not kept.
_CHEAP = {
    F.silu,
    F.gelu,
    F.relu,
    F.rms_norm,
    torch.relu,
    torch.tanh,
    torch.Tensor.tanh,
    torch.sigmoid,
    torch.Tensor.sigmoid,
    torch.mul,
    torch.Tensor.mul,
    torch.pow,
    torch.Tensor.pow,
    torch.Tensor.to,
    torch.Tensor.float,
}
_PRODUCTS = {torch.mul, torch.Tensor.mul}


class ChangedOperandError(Exception):
    """A tensor was changed in place after something was computed from it that has to be computed again."""


@dataclass(slots=True)
class Recipe:
    """How to compute a tensor again: ``operation(*operands, **options)``.

    Once computed, the tensor lives as long as the recipe. Autograd and the rules read the same few tensors several
    times, and release the recipe when they are done with the layer.
    """

    operation: Callable[..., Tensor]
    operands: tuple[Any, ...]  # tensors, recipes, or plain values
    versions: tuple[int, ...]  # of those operands that are tensors
    options: dict[str, Any]
    _result: Tensor | None = None

    def compute(self) -> Tensor:
        """Compute the tensor, without a graph.

        Raises:
            ChangedOperandError: an operand was changed in place.
        """
        if self._result is None:
            if self.versions != _versions(self.operands):
                raise ChangedOperandError(f"an operand of {self.operation} was changed in place")
            with torch.no_grad():
                self._result = self.operation(*(restore(operand) for operand in self.operands), **self.options)
        return self._result


Kept: TypeAlias = Tensor | Recipe


def restore(kept: Any) -> Any:  # noqa: ANN401 - plain values pass through
    """Return the tensor that was kept, or the result of the recipe that was kept."""
    return kept.compute() if isinstance(kept, Recipe) else kept


class Rematerialization:
    """Records how each cheap result that is still alive in the forward pass was computed; records nothing if off."""

    def __init__(self, *, is_off: bool = False) -> None:
        self.is_off = is_off
        self._recipes: dict[int, tuple[weakref.ref[Tensor], int, Recipe]] = {}  # by address

    def note(
        self, operation: Callable[..., Any], operands: tuple[Any, ...], options: dict[str, Any], result: object
    ) -> None:
        """Record how ``result`` was computed, if the operation is cheap."""
        if operation in _CHEAP:
            self.note_cheap(operation, operands, options, result)

    def note_cheap(
        self, operation: Callable[..., Any], operands: tuple[Any, ...], options: dict[str, Any], result: object
    ) -> None:
        """Record how ``result`` was computed, by an operation that is out of place, without randomness and cheap."""
        if self.is_off or not isinstance(result, Tensor) or any(isinstance(v, Tensor) for v in options.values()):
            return
        tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        address = result.data_ptr()
        if result.numel() <= 1 or any(tensor.data_ptr() == address for tensor in tensors):
            return  # a single number, a view or the operand itself
        if operation in _PRODUCTS and not all(tensor.requires_grad for tensor in tensors):
            return  # autograd keeps a factor only if the other has a gradient: else a recipe alone would keep these
        kept = tuple(self.keep(operand) if isinstance(operand, Tensor) else operand for operand in operands)
        recipe = Recipe(operation, kept, _versions(kept), options)
        reference = weakref.ref(result, lambda _: self._recipes.pop(address, None))
        self._recipes[address] = (reference, result._version, recipe)

    def keep(self, tensor: Tensor) -> Kept:
        """Return what to keep of a tensor until the backward pass: its recipe if there is one, else the tensor."""
        reference, version, recipe = self._recipes.get(tensor.data_ptr(), (None, 0, None))
        result = None if reference is None else reference()
        if recipe is None or result is None or not _is_same(tensor, result) or tensor._version != version:
            return tensor.detach()
        return recipe


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors at one address are the same: of equal dtype, shape and strides."""
    return tensor.dtype == other.dtype and tensor.shape == other.shape and tensor.stride() == other.stride()


def _versions(operands: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(operand._version for operand in operands if isinstance(operand, Tensor))
