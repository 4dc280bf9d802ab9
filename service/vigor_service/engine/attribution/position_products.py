"""The uses of parameters in one run of an unmodified model, and what each position adds to their gradients.

A use is a call that a rule recognises. Let b be the loss gradient at its output y, and J the Jacobian of y with respect
to the call's parameters. A step d in the parameters, with the input fixed, changes y by ``J d``. Then
``⟨b_t, (J d)_t⟩`` is the inner product of d with the part of the parameters' gradient that position t adds: for a
linear layer with the input a, ``b_tᵀ d a_t``. Shapes: L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

from vigor_service.engine.model.unwrap import causal_model
from vigor_service.engine.norms.op_interception import Claim, Interception, Tracing
from vigor_service.engine.norms.plan import self_check_ids
from vigor_service.engine.rules import OpCall


@dataclass(frozen=True, slots=True)
class Use:
    """One recognised call: how to repeat it, its output's edge in the autograd graph, and the axis of the positions."""

    call: partial[Any]
    output: GradientEdge
    token_axis: int


class RecordingUses(Interception):
    """Runs the unmodified model and records the uses of its parameters.

    A parameter is ``unresolved`` if a use of it cannot be split by position, or if no claim names it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], claims: set[Claim], num_tokens: int) -> None:
        super().__init__(parameters.values())
        self._parameters = parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._claims = claims
        self._num_tokens = num_tokens
        self._derivations: dict[int, partial[Any]] = {}  # id of a derived tensor -> the call that made it
        self.uses: list[Use] = []
        self.unresolved = set(parameters).difference(name for claim in claims for name in claim.names)

    def run_call(self, call: OpCall, plain: partial[Any]) -> Any:  # noqa: ANN401 - whatever torch returns
        output = plain()
        names = tuple(self._names[id(parameter)] for parameter in self.measured(call))
        axes = [axis for axis in call.token_axes(self._num_tokens) if Claim(call.rule, names, axis) in self._claims]
        if len(axes) == 1:
            self.uses.append(Use(plain, get_gradient_edge(output), axes[0]))
        else:
            self.unresolved.update(names)
        return output

    def products(self, gradients: Sequence[Tensor | None], output_gradients: Sequence[Tensor | None]) -> Tensor:
        """Return ``Σ ⟨g_t, g⟩`` over the parameters that are not unresolved, shape (L,), in float64.

        ``gradients`` are those of the parameters, ``output_gradients`` those at the outputs of the uses, both in order.
        """
        directions = {
            id(parameter): gradient
            for (name, parameter), gradient in zip(self._parameters.items(), gradients, strict=True)
            if gradient is not None and name not in self.unresolved
        }
        device = next(iter(self._parameters.values())).device
        products_L = torch.zeros(self._num_tokens, dtype=torch.float64, device=device)
        for use, gradient in zip(self.uses, output_gradients, strict=True):
            tangent = None if gradient is None else self._tangent(use.call, directions)
            if gradient is not None and tangent is not None:
                dtype = torch.promote_types(gradient.dtype, torch.float32)
                products = (gradient.to(dtype) * tangent.to(dtype)).movedim(use.token_axis, 0)
                products_L += products.flatten(1).sum(-1, dtype=torch.float64)
        return products_L

    def _derive(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        derived = super()._derive(function, args, kwargs)
        if isinstance(derived, Tensor) and all(
            derived is not arg for arg in args
        ):  # a cast to its own dtype returns the tensor itself
            self._derivations[id(derived)] = partial(function, *args, **kwargs)
        return derived

    def _tangent(self, call: partial[Any], directions: Mapping[int, Tensor]) -> Tensor | None:
        """Return ``J d`` of the call, or None if none of its parameters has a direction.

        It is the gradient of ``⟨Jᵀ u, d⟩`` with respect to u. torch's own forward-mode differentiation is not used: it
        loads a module that warns of its deprecation.
        """
        leaves = [leaf for leaf in tree_leaves((call.args, call.keywords)) if isinstance(leaf, Tensor)]
        moves = {id(leaf): self._direction(leaf, directions) for leaf in leaves}
        free = {key: next(leaf for leaf in leaves if id(leaf) == key).detach() for key in moves}
        moving = [free[key].requires_grad_() for key, move in moves.items() if move is not None]
        if not moving:
            return None
        args, kwargs = tree_map_only(Tensor, lambda leaf: free[id(leaf)], (call.args, call.keywords))
        with torch.enable_grad():
            output = call.func(*args, **kwargs)
            direction = torch.zeros_like(output, requires_grad=True)
            pulled = torch.autograd.grad(output, moving, direction, create_graph=True)
        (tangent,) = torch.autograd.grad(pulled, direction, [move for move in moves.values() if move is not None])
        return tangent

    def _direction(self, tensor: Tensor, directions: Mapping[int, Tensor]) -> Tensor | None:
        derivation = self._derivations.get(id(tensor))
        return directions.get(id(tensor)) if derivation is None else self._tangent(derivation, directions)


def position_claims(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> set[Claim]:
    """Return the traced calls that can be split by position, of parameters without any other use in the trace.

    The number of tokens in the trace equals no size in the model's config, so that no other axis is mistaken for the
    token axis.
    """
    ids = self_check_ids(causal_model(model))
    tracing = Tracing(parameters, len(ids))
    with torch.no_grad(), tracing:
        model(input_ids=torch.tensor([ids], device=causal_model(model).device), use_cache=False)
    return {claim for claim in tracing.claims if tracing.refusals.keys().isdisjoint(claim.names)}
