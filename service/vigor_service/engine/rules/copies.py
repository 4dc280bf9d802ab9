"""A small parameter that all tokens use: each sequence gets a copy, whose gradient is the sequence's own.

It is for parameters that are neither multiplied with nor added to rows of tokens, such as attention sinks. Shapes: B
sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from vigor_service.engine.ops.typed_torch import apply
from vigor_service.engine.rules.context import NormContext


def copies_for_sequences(parameter: Tensor, num_sequences: int) -> Tensor:
    """Return ``parameter`` B times, shape (B, ...). A torch function mode sees it as one operation."""
    if has_torch_function((parameter,)):
        return handle_torch_function(copies_for_sequences, (parameter,), parameter, num_sequences)
    return parameter.expand(num_sequences, *parameter.shape)


@dataclass(frozen=True, slots=True)
class CopiesCall:
    """A call of ``copies_for_sequences``."""

    parameter: Tensor
    num_sequences: int
    rule: str = "copy for each sequence"

    def parameters(self) -> list[Tensor]:
        return [self.parameter]

    def token_axes(self, num_tokens: int) -> list[int]:  # noqa: ARG002 - there are no tokens
        return [0]

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:  # noqa: ARG002
        return apply(_Copies, leaf_of(self.parameter), self.parameter, self.num_sequences)


def from_copies(parameter: Tensor, num_sequences: int) -> CopiesCall:
    """Recognise ``copies_for_sequences``."""
    return CopiesCall(parameter, num_sequences)


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401, ARG004 - torch's context
        leaf_B: Tensor,  # noqa: ARG004 - its gradient is the result
        parameter: Tensor,
        num_sequences: int,
    ) -> Tensor:
        return parameter.expand(num_sequences, *parameter.shape).clone()

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401, ARG004
        return squared_shares(output_gradients[0]), None, None


def squared_shares(gradient_B: Tensor) -> Tensor:
    """Return ``‖g_b‖²`` of each sequence's copy, shape (B,), float64."""
    return gradient_B.flatten(1).double().square().sum(1)
