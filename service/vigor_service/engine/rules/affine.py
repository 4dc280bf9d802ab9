"""Scale and shift, feature by feature: the parameters of LayerNorm and of every RMSNorm.

``y = x ⊙ w + b``: per sequence the gradients are Σ_t g_t ⊙ x_t and Σ_t g_t, summed over heads too where x has heads.
Gemma's ``x ⊙ (1 + w)`` is the same with another factor. Where each head has features of its own (Cohere's norms of
queries and keys), the parameter has the shape of x's last two axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigor_service.engine.measurement import Measurement
from vigor_service.engine.rules.linear import row_sum_shares

Elementwise = Literal["multiply", "add"]


@dataclass(frozen=True, slots=True)
class AffineCall:
    """``normalize(x) * factor + shift``; the factor is the parameter ``weight``, or was derived from it."""

    x: Tensor
    factor: Tensor | None
    weight: Tensor | None
    shift: Tensor | None
    bias: Tensor | None
    normalize: Callable[[Tensor], Tensor] | None = None
    rule: str = "affine"

    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in (self.weight, self.bias) if parameter is not None]

    def token_axes(self, num_tokens: int) -> list[int]:
        (shape,) = {parameter.shape for parameter in self.parameters()}
        num_leading = self.x.dim() - len(shape)
        leading, features = self.x.shape[:num_leading], self.x.shape[num_leading:]
        if features != shape:
            return []
        return [axis for axis, size in enumerate(leading) if size == num_tokens and (axis < 2 or leading[0] == 1)]

    def run(self, measurement: Measurement, is_measured: Callable[[Tensor], bool], token_axis: int) -> Tensor:
        x = self._normalized(measurement)
        output: Tensor = _Affine.apply(  # pyright: ignore[reportAssignmentType] - apply is untyped
            x,
            measurement.squared_norms_B,
            self.factor,
            self.shift,
            measurement,
            token_axis,
            self.weight is not None and is_measured(self.weight),
            self.bias is not None and is_measured(self.bias),
        )
        measurement.rematerialization.note_cheap(_scale_and_shift, (x, self.factor, self.shift), {}, output)
        return output

    def _normalized(self, measurement: Measurement) -> Tensor:
        if self.normalize is None:
            return self.x
        normalized = self.normalize(self.x)
        measurement.rematerialization.note_cheap(self.normalize, (self.x,), {}, normalized)
        return normalized


def from_elementwise(
    operation: Elementwise, args: tuple[Any, ...], sources: Mapping[int, nn.Parameter]
) -> AffineCall | None:
    """Recognise ``x * w``, ``w * x``, ``x + b`` and ``b + x`` with exactly one measured parameter."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    found = [tensor for tensor in tensors if id(tensor) in sources]
    if len(args) != 2 or len(tensors) != 2 or len(found) != 1:
        return None
    (derived,) = found
    x = tensors[1] if tensors[0] is derived else tensors[0]
    if operation == "multiply":
        return AffineCall(x, derived, sources[id(derived)], None, None)
    return AffineCall(x, None, None, derived, sources[id(derived)])


def from_layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> AffineCall:
    """Recognise ``F.layer_norm``: normalise without parameters, then scale and shift."""
    return AffineCall(input, weight, weight, bias, bias, lambda x: F.layer_norm(x, normalized_shape, None, None, eps))


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: Tensor,
        squared_norms_B: Tensor,  # noqa: ARG004 - its gradient is the result
        factor: Tensor | None,
        shift: Tensor | None,
        measurement: Measurement,
        token_axis: int,
        measures_weight: bool,
        measures_bias: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, factor)
        ctx.measurement, ctx.token_axis = measurement, token_axis
        ctx.num_features = next(vector.numel() for vector in (factor, shift) if vector is not None)
        ctx.measures = (measures_weight, measures_bias)
        return _scale_and_shift(x, factor, shift)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = output_gradients
        x, factor = ctx.saved_tensors
        measures_weight, measures_bias = ctx.measures
        shares: list[Tensor] = []
        if measures_weight:
            shares.append(_shares(_products(gradient, x), ctx))
        if measures_bias:
            shares.append(_shares(gradient, ctx))
        x_gradient = gradient if factor is None else (gradient * factor).to(x.dtype)
        return x_gradient, reduce(torch.add, shares), None, None, None, None, None, None


def _scale_and_shift(x: Tensor, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    scaled = x if factor is None else x * factor
    return scaled if shift is None else scaled + shift


def _products(gradient: Tensor, x: Tensor) -> Tensor:
    """``g_t ⊙ x_t``: in float32, or on a CUDA device in bfloat16, which has its range; the sums are float32's.

    Rounding each product adds no more than the gradient's own rounding did.
    """
    if gradient.is_cuda and gradient.dtype == x.dtype == torch.bfloat16:
        return gradient * x
    return gradient.float() * x


def _shares(products: Tensor, ctx: Any) -> Tensor:  # noqa: ANN401 - torch's context
    """``‖Σ_t p_t‖²`` per sequence, shape (B,); what is neither token nor feature, such as heads, is summed too."""
    num_tokens = ctx.measurement.batch.num_tokens
    rows_NXD = products.movedim(ctx.token_axis, 0).reshape(num_tokens, -1, ctx.num_features)
    if rows_NXD.shape[1] == 1:
        return row_sum_shares(rows_NXD.squeeze(1), ctx.measurement)
    return row_sum_shares(rows_NXD.sum(1, dtype=torch.promote_types(products.dtype, torch.float32)), ctx.measurement)
