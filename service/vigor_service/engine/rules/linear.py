"""Linear layers: F.linear, and GPT-2's Conv1D (addmm with the weight transposed).

Per sequence, with A (T, D_in) the input rows and G (T, D_out) the output gradients: the weight's gradient is GᵀA, the
bias's Σ_t g_t. ``‖GᵀA‖²`` is had from the gradient itself or as ``Σ_ts (AAᵀ)_ts (GGᵀ)_ts``, whichever costs less
(Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vigor_service.engine import gemm
from vigor_service.engine.grams import gram_blocks, inner_product_, matmul_float32
from vigor_service.engine.measurement import Measurement
from vigor_service.engine.probes import estimated_share


@dataclass(frozen=True, slots=True)
class LinearCall:
    """``x @ weight.T + bias``; ``weight_OI`` is a view of ``weight``, transposed for Conv1D."""

    x: Tensor
    weight: Tensor
    weight_OI: Tensor
    bias: Tensor | None
    rule: str = "linear"

    def parameters(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def token_axes(self, num_tokens: int) -> list[int]:
        fits = self.weight.dim() == 2 and tuple(self.x.shape[:-1]) in ((num_tokens,), (1, num_tokens))
        return [self.x.dim() - 2] if fits else []

    def run(self, measurement: Measurement, is_measured: Callable[[Tensor], bool], token_axis: int) -> Tensor:  # noqa: ARG002
        measures_bias = self.bias is not None and is_measured(self.bias)
        return _Linear.apply(  # pyright: ignore[reportReturnType] - apply is untyped
            self.x,
            measurement.squared_norms_B,
            self.weight_OI,
            self.bias,
            measurement,
            is_measured(self.weight),
            measures_bias,
            measurement.signs_of(self.weight, self.weight_OI),
        )


def from_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearCall:
    """Recognise ``F.linear``."""
    return LinearCall(input, weight, weight, bias)


def from_addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> LinearCall | None:
    """Recognise ``torch.addmm(bias, x, weight)`` as transformers' Conv1D calls it."""
    return LinearCall(mat1, mat2, mat2.T, input) if beta == alpha == 1 else None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        squared_norms_B: Tensor,  # noqa: ARG004 - its gradient is the result
        weight_OI: Tensor,
        bias_O: Tensor | None,
        measurement: Measurement,
        measures_weight: bool,
        measures_bias: bool,
        signs_PI: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        ctx.measurement, ctx.measures, ctx.signs_PI = measurement, (measures_weight, measures_bias), signs_PI
        if measures_weight:
            measurement.grams.expect(x, num_outputs=len(weight_OI))
        shared = measurement.batch.shared
        if shared is None:
            return gemm.linear(x, weight_OI, bias_O)
        return shared.apply(lambda rows_UI: gemm.linear(rows_UI, weight_OI, bias_O), x)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = output_gradients
        x, weight_OI = ctx.saved_tensors
        measures_weight, measures_bias = ctx.measures
        shares_B = torch.zeros_like(ctx.measurement.squared_norms_B)
        if measures_weight:
            shares_B = shares_B + weight_shares(
                x.flatten(0, -2), gradient.flatten(0, -2), ctx.measurement, ctx.signs_PI
            )
        if measures_bias:
            shares_B = shares_B + row_sum_shares(gradient.flatten(0, -2), ctx.measurement)
        x_gradient = gemm.linear(gradient, weight_OI.T) if ctx.needs_input_grad[0] else None
        return x_gradient, shares_B, None, None, None, None, None, None


def weight_shares(
    x_NI: Tensor, gradient_NO: Tensor, measurement: Measurement, signs_PI: Tensor | None = None
) -> Tensor:
    """``‖GᵀA‖²`` per sequence, shape (B,); an estimate if there are probes (P, I)."""
    pairs = zip(measurement.rows_of_sequences(x_NI), measurement.rows_of_sequences(gradient_NO), strict=True)
    if signs_PI is not None:
        return torch.stack([estimated_share(x_TI, gradient_TO, signs_PI) for x_TI, gradient_TO in pairs])
    num_outputs = measurement.grams.num_outputs(x_NI)  # of all layers that share AAᵀ
    shares: list[Tensor] = []
    for b, (x_TI, gradient_TO) in enumerate(pairs):
        if gram_is_cheaper(len(x_TI), x_TI.shape[1], num_outputs):
            input_blocks = measurement.grams.blocks(x_NI, b, x_TI)
            shares.append(inner_product_(gram_blocks(gradient_TO), input_blocks))
        else:
            shares.append(squared_norm(weight_gradient(x_TI, gradient_TO)))
    return torch.stack(shares)


def row_sum_shares(gradient_NO: Tensor, measurement: Measurement) -> Tensor:
    """``‖Σ_t g_t‖²`` per sequence, shape (B,): the square of the sum."""
    return torch.stack([squared_norm(rows_TO.float().sum(0)) for rows_TO in measurement.rows_of_sequences(gradient_NO)])


def gram_is_cheaper(num_tokens: int, num_inputs: int, num_outputs: int) -> bool:
    """Whether ``2 T² (I + O)`` FLOPs for two Gram matrices are fewer than ``2 T I O`` for the gradient itself."""
    return num_tokens * (num_inputs + num_outputs) < num_inputs * num_outputs


def weight_gradient(x_TI: Tensor, gradient_TO: Tensor) -> Tensor:
    """``GᵀA``, shape (O, I). float16 would overflow, so it is accumulated and kept in float32."""
    if x_TI.dtype == torch.float16:
        return matmul_float32(gradient_TO.T, x_TI)
    return gradient_TO.T @ x_TI


def squared_norm(tensor: Tensor) -> Tensor:
    """Sum of squares as a float64 scalar, without a float64 copy of the tensor."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float32).double().square()
