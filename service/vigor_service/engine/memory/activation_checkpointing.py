"""Activation checkpointing: the forward pass keeps each decoder layer's input, the backward pass runs the layer again.

Autograd then holds the activations of one layer at a time instead of all layers', at the cost of one more forward pass.
torch's own checkpointing does not fit: its second run must have the same operations as its first, while here only the
second run is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vigor_service.engine.ops.forwards import running_forwards
from vigor_service.engine.ops.typed_torch import apply, gradients_of


class UncheckpointableLayerError(Exception):
    """A decoder layer is more than a function of one hidden state; the message says what it is."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """How the layers of one pass are run.

    ``forward_context`` is entered around a layer in the forward pass, ``recompute_context`` around it in the backward
    pass, which may be on another thread. ``leaves`` are the tensors whose gradients are wanted: the leaves that collect
    norms, and parameters.
    """

    forward_context: Callable[[], AbstractContextManager[object]]
    recompute_context: Callable[[], AbstractContextManager[object]]
    leaves: Sequence[Tensor]


_active: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


def measured_layers(layers: Iterable[nn.Module], measured: Iterable[nn.Parameter]) -> list[nn.Module]:
    """Return the layers from the first one with a measured parameter on: earlier layers need no graph."""
    ids = {id(parameter) for parameter in measured}
    return list(dropwhile(lambda layer: ids.isdisjoint(map(id, layer.parameters())), layers))


def checkpointable(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Let a thread run these layers under ``checkpointing``, and restore their own forwards afterwards."""
    return running_forwards({layer: partial(_run, layer.forward) for layer in layers})


@contextmanager
def checkpointing(checkpoints: Checkpoints) -> Generator[None]:
    """Within this context, on this thread, keep only the inputs of ``checkpointable`` layers."""
    token = _active.set(checkpoints)
    try:
        yield
    finally:
        _active.reset(token)


def _run(forward: Callable[..., Any], hidden_1ND: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Return ``forward(hidden_1ND, *args, **kwargs)``, checkpointed if this thread is within ``checkpointing``."""
    checkpoints = _active.get()
    if checkpoints is None:
        return forward(hidden_1ND, *args, **kwargs)
    if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs))):
        raise UncheckpointableLayerError("a decoder layer takes more than one tensor that has a gradient")
    layer = _LayerCall(forward, args, kwargs)
    output_1ND: Tensor = apply(_Layer, hidden_1ND, layer, checkpoints, *checkpoints.leaves)
    return output_1ND if layer.others is None else (output_1ND, *layer.others)


class _LayerCall:
    """A layer as a function of its hidden state; ``others`` is the rest of the tuple that it returned, if it did."""

    def __init__(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forward, self._args, self._kwargs = forward, args, kwargs
        self.others: tuple[Any, ...] | None = None

    def __call__(self, hidden_1ND: Tensor) -> Tensor:
        output = self._forward(hidden_1ND, *self._args, **self._kwargs)
        if isinstance(output, tuple):
            output, *others = cast("tuple[Any, ...]", output)
            self.others = tuple(others)
        if not isinstance(output, Tensor) or any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.others)):
            raise UncheckpointableLayerError("a decoder layer returns more than one tensor, or none")
        return output


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        hidden_1ND: Tensor,
        layer: _LayerCall,
        checkpoints: Checkpoints,
        *leaves: Tensor,  # noqa: ARG004 - their gradients are the result
    ) -> Tensor:
        ctx.save_for_backward(hidden_1ND)
        ctx.layer, ctx.checkpoints = layer, checkpoints
        with checkpoints.forward_context():
            return layer(hidden_1ND)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        checkpoints: Checkpoints = ctx.checkpoints
        needs_hidden = ctx.needs_input_grad[0]
        hidden_1ND = ctx.saved_tensors[0].detach().requires_grad_(needs_hidden)
        with torch.enable_grad(), checkpoints.recompute_context():
            output_1ND = ctx.layer(hidden_1ND)
        leaves = checkpoints.leaves
        gradients = gradients_of(
            output_1ND, [hidden_1ND, *leaves] if needs_hidden else list(leaves), output_gradients[0]
        )
        hidden_gradient, *shares = gradients if needs_hidden else (None, *gradients)
        return hidden_gradient, None, None, *shares
