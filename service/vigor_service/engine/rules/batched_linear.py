"""Experts that all run on all tokens, as one batched product: ``torch.bmm(x, weight)`` (Llama 4).

Per sequence the gradient of expert e is X_eᵀG_e over the sequence's tokens, with X (E, N, I) and G (E, N, O).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vigor_service.engine.ops.typed_torch import apply
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.linear import weight_share


@dataclass(frozen=True, slots=True)
class BatchedLinearCall:
    """A call of ``torch.bmm(x_ENI, weight_EIO)``."""

    x_ENI: Tensor
    weight_EIO: Tensor
    rule: str = "batched linear"

    def parameters(self) -> list[Tensor]:
        return [self.weight_EIO]

    def token_axes(self, num_tokens: int) -> list[int]:
        return [1] if self.x_ENI.dim() == 3 and self.x_ENI.shape[1] == num_tokens else []

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:  # noqa: ARG002
        return apply(_BatchedLinear, self.x_ENI, leaf_of(self.weight_EIO), self.weight_EIO, context)


def from_bmm(input: Tensor, mat2: Tensor) -> BatchedLinearCall:
    """Recognise ``torch.bmm``."""
    return BatchedLinearCall(input, mat2)


class _BatchedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x_ENI: Tensor,
        leaf_B: Tensor,  # noqa: ARG004 - its gradient is the result
        weight_EIO: Tensor,
        context: NormContext,
    ) -> Tensor:
        ctx.save_for_backward(x_ENI, weight_EIO)
        ctx.context = context
        return torch.bmm(x_ENI, weight_EIO)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient_ENO,) = output_gradients
        x_ENI, weight_EIO = ctx.saved_tensors
        shares = [
            sum(
                weight_share(x_NI[rows], gradient_NO[rows])
                for x_NI, gradient_NO in zip(x_ENI, gradient_ENO, strict=True)
            )
            for rows in ctx.context.batch.token_slices
        ]
        x_gradient_ENI = torch.bmm(gradient_ENO, weight_EIO.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return x_gradient_ENI, torch.stack(shares), None, None  # pyright: ignore[reportArgumentType] - sums of tensors
