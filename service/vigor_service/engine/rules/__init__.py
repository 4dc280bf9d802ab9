"""Rules: for each parameterised operation, its parameters' share of the squared gradient norm.

An operation is recognised where it happens, as a call of a torch function with a measured parameter among its
arguments; so a rule serves every architecture that uses the operation. What no rule recognises is left to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigor_service.engine.rules import affine, batched_linear, copies, embedding, experts, linear
from vigor_service.engine.rules.context import NormContext


class OpCall(Protocol):
    """One recognised call of an operation that has measured parameters."""

    @property
    def rule(self) -> str:
        """The rule's name, as users see it."""
        ...

    def parameters(self) -> list[Tensor]:
        """Return the tensors among the call's arguments that may be parameters."""
        ...

    def token_axes(self, num_tokens: int) -> list[int]:
        """Return the axes of the input that may be the token axis; the rule applies if there is exactly one."""
        ...

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:
        """Return the call's output, whose backward pass adds the shares to the leaves of the context.

        ``leaf_of`` returns the leaf that collects a parameter's share, None for a parameter that is not measured.
        """
        ...


def recognize(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], sources: Mapping[int, nn.Parameter]
) -> OpCall | None:
    """Return the call if a rule knows the function, else None.

    ``sources`` maps the id of each measured parameter, and of what was derived from it by a cast, a transposition or
    by adding a constant, to the parameter.
    """
    if function in _ELEMENTWISE:
        return None if kwargs else affine.from_elementwise(_ELEMENTWISE[function], args, sources)
    parse = _FUNCTIONS.get(function)
    return None if parse is None else parse(*args, **kwargs)


_FUNCTIONS: dict[Callable[..., Any], Callable[..., OpCall | None]] = {
    F.linear: linear.from_linear,
    torch.matmul: linear.from_matmul,
    torch.Tensor.matmul: linear.from_matmul,
    torch.Tensor.__matmul__: linear.from_matmul,
    torch.addmm: linear.from_addmm,
    torch.bmm: batched_linear.from_bmm,
    experts.experts_linear: experts.from_experts_linear,
    copies.copies_for_sequences: copies.from_copies,
    F.embedding: embedding.from_embedding,
    F.layer_norm: affine.from_layer_norm,
}

_ELEMENTWISE: dict[Callable[..., Any], affine.Elementwise] = {
    torch.mul: "multiply",
    torch.Tensor.mul: "multiply",
    torch.add: "add",
    torch.Tensor.add: "add",
}
