"""Linear layers: F.linear, and GPT-2's Conv1D (addmm with the weight transposed).

Per sequence, with A (T, D_in) the input rows and G (T, D_out) the output gradients: the weight's gradient is GᵀA, the
bias's Σ_t g_t. ``‖GᵀA‖²`` is computed from the gradient itself or as ``Σ_ts (AAᵀ)_ts (GGᵀ)_ts``, whichever costs less
(Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vigor_service.engine.batching.shared_prefixes import join_rows
from vigor_service.engine.ops import gemm
from vigor_service.engine.ops.gram import (
    gram_blocks,
    inner_product_,
    matmul_float32,
    triangle_share,
    weighted_gram_blocks,
)
from vigor_service.engine.ops.hutchinson import estimated_share
from vigor_service.engine.ops.kernels.weight_norms import weight_norms
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import apply, vector_norm
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.shared_input import LinearInput


@dataclass(frozen=True, slots=True)
class LinearCall:
    """A call of ``x @ weight.T + bias``; ``weight_OI`` is a view of ``weight``, transposed for Conv1D."""

    x: Tensor
    weight: Tensor
    weight_OI: Tensor
    bias: Tensor | None
    rule: str = "linear"

    def parameters(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def token_axes(self, num_tokens: int) -> list[int]:
        *outer, rows = self.x.shape[:-1] or (0,)
        fits = self.weight.dim() == 2 and rows == num_tokens and all(size == 1 for size in outer)
        return [self.x.dim() - 2] if fits else []

    def plain_output(self, x: Tensor) -> Tensor:
        """Return the layer's output for these rows."""
        return gemm.linear(x, self.weight_OI, self.bias)

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:  # noqa: ARG002
        with torch.no_grad():
            plain, pieces = context.known_rows.complete(self.plain_output, self.x, self.weight)
        output: Tensor = apply(
            _Linear,
            self.x,
            leaf_of(self.weight),
            None if self.bias is None else leaf_of(self.bias),
            plain,
            self.weight_OI,
            context,
            context.signs_of(self.weight, self.weight_OI),
        )
        if pieces:
            context.rematerialization.note_cheap(join_rows, tuple(pieces), {"shape": output.shape}, output)
        return output


def from_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearCall:
    """Recognise ``F.linear``."""
    return LinearCall(input, weight, weight, bias)


def from_matmul(input: Tensor, other: Tensor) -> LinearCall | None:
    """Recognise ``x @ weight.T`` and ``x @ weight``: Falcon's linear layers, LoRA on an embedding."""
    return LinearCall(input, other, other.T, None) if other.dim() == 2 else None


def from_addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> LinearCall | None:
    """Recognise ``torch.addmm(bias, x, weight)`` as transformers' Conv1D calls it."""
    return LinearCall(mat1, mat2, mat2.T, input) if beta == alpha == 1 else None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        weight_leaf_B: Tensor | None,  # the leaves' gradients are the result
        bias_leaf_B: Tensor | None,  # noqa: ARG004
        output: Tensor,
        weight_OI: Tensor,
        context: NormContext,
        signs_PI: Tensor | None,
    ) -> Tensor:
        ctx.weight_OI, ctx.context = weight_OI, context
        ctx.input, ctx.signs_PI = None, signs_PI
        if weight_leaf_B is not None:
            ctx.input = context.linear_inputs.of(x)
            ctx.input.add_layer(len(weight_OI))
        return torch.ops.aten._unsafe_view(output, output.shape)  # some models add to it in place, which views forbid

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = output_gradients
        weight_shares_B = bias_shares_B = None
        if ctx.input is not None:
            weight_shares_B = weight_shares(ctx.input, gradient.flatten(0, -2), ctx.context, ctx.signs_PI)
            ctx.input.release()
        if ctx.needs_input_grad[2]:
            bias_shares_B = row_sum_shares(gradient.flatten(0, -2), ctx.context)
        x_gradient = gemm.linear(gradient, ctx.weight_OI.T) if ctx.needs_input_grad[0] else None
        return x_gradient, weight_shares_B, bias_shares_B, None, None, None, None


def weight_shares(
    layer_input: LinearInput, gradient_NO: Tensor, context: NormContext, signs_PI: Tensor | None
) -> Tensor:
    """Return ``‖GᵀA‖²`` per sequence, shape (B,); an estimate if there are sketch vectors (P, I)."""
    if signs_PI is not None:
        x_NI, slices = layer_input.rows_NI(), context.batch.token_slices
        return torch.stack([estimated_share(x_NI[rows], gradient_NO[rows], signs_PI) for rows in slices])
    if gradient_NO.is_cuda:
        return weight_norms(layer_input.rows_NI(), gradient_NO, context.batch.token_slices)
    shares: list[Tensor] = []
    for b, rows in enumerate(context.batch.token_slices):
        x_TI, gradient_TO = layer_input.rows_NI()[rows], gradient_NO[rows]
        if gram_is_cheaper(len(x_TI), x_TI.shape[1], layer_input.num_outputs):
            shares.append(inner_product_(gram_blocks(gradient_TO), layer_input.gram_blocks(b, rows)))
        else:
            shares.append(squared_norm(weight_gradient(x_TI, gradient_TO)))
    return torch.stack(shares)


def row_sum_shares(gradient_NO: Tensor, context: NormContext) -> Tensor:
    """Return ``‖Σ_t g_t‖²`` per sequence, shape (B,).

    On a CUDA device the sums are a product with zeros and ones, which is exact: one launch serves all sequences.
    """
    if gradient_NO.is_cuda:
        sums_BO = matmul_float32(context.batch.membership_BN(gradient_NO.dtype), gradient_NO)
        return vector_norm(sums_BO, dim=-1, dtype=torch.float64).square()
    return torch.stack([squared_norm(rows_TO.float().sum(0)) for rows_TO in context.rows_of_sequences(gradient_NO)])


def gram_is_cheaper(num_tokens: int, num_inputs: int, num_outputs: int) -> bool:
    """Return whether two Gram matrices, with ``2 T² (I + O)`` FLOPs, cost less than the gradient itself, ``2 T I O``.

    The time of Gram matrices counts by ``triangle_share()``, because only a triangle of each is computed.
    """
    return triangle_share() * num_tokens * (num_inputs + num_outputs) < num_inputs * num_outputs


def weight_share(x_TI: Tensor, gradient_TO: Tensor) -> Tensor:
    """Return ``‖GᵀA‖²`` of the rows of one sequence, a float64 scalar, by the cheaper of two methods."""
    if gram_is_cheaper(len(x_TI), x_TI.shape[1], gradient_TO.shape[1]):
        return inner_product_(gram_blocks(gradient_TO), weighted_gram_blocks(x_TI))
    return squared_norm(weight_gradient(x_TI, gradient_TO))


def weight_gradient(x_TI: Tensor, gradient_TO: Tensor) -> Tensor:
    """Return ``GᵀA``, shape (O, I). float16 would overflow, so it is accumulated and kept in float32."""
    if x_TI.dtype == torch.float16:
        return matmul_float32(gradient_TO.T, x_TI)
    return gradient_TO.T @ x_TI
