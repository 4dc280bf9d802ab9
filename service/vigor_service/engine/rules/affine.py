"""Scale and shift, element by element: the parameters of LayerNorm and of every RMSNorm, and learned scalars.

For ``y = x ⊙ w + b``, the gradients per sequence are Σ_t g_t ⊙ x_t and Σ_t g_t. They are summed over every axis along
which the parameter is broadcast: always over tokens, over heads if x has heads and they share the parameter, and over
all axes for a scalar. Gemma's ``x ⊙ (1 + w)`` is the same with another factor. If each head has features of its own
(Cohere's norms of queries and keys), the parameter has the shape of x's last two axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vigor_service.engine.ops.typed_torch import apply
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.linear import row_sum_shares

Elementwise = Literal["multiply", "add"]


@dataclass(frozen=True, slots=True)
class AffineCall:
    """A call of ``normalize(x) * factor + shift``; the factor is the parameter ``weight``, or was derived from it."""

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
        sizes = self.x.shape
        if len(shape) > len(sizes):
            return []
        own = _aligned(shape, len(sizes))
        if any(mine not in (1, size) for mine, size in zip(own, sizes, strict=True)):
            return []
        return [
            axis
            for axis, (mine, size) in enumerate(zip(own, sizes, strict=True))
            if size == num_tokens and mine == 1 and (axis < 2 or sizes[0] == 1)
        ]

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:
        x = self._normalized(context)
        output: Tensor = apply(
            _Affine,
            x,
            None if self.weight is None else leaf_of(self.weight),
            None if self.bias is None else leaf_of(self.bias),
            self.factor,
            self.shift,
            context,
            token_axis,
        )
        context.rematerialization.note_cheap(_scale_and_shift, (x, self.factor, self.shift), {}, output)
        return output

    def _normalized(self, context: NormContext) -> Tensor:
        if self.normalize is None:
            return self.x
        normalized = self.normalize(self.x)
        context.rematerialization.note_cheap(self.normalize, (self.x,), {}, normalized)
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
        weight_leaf_B: Tensor | None,  # noqa: ARG004 - the leaves' gradients are the result
        bias_leaf_B: Tensor | None,  # noqa: ARG004
        factor: Tensor | None,
        shift: Tensor | None,
        context: NormContext,
        token_axis: int,
    ) -> Tensor:
        ctx.save_for_backward(x, factor)
        ctx.context, ctx.token_axis = context, token_axis
        ctx.shape = next(tensor.shape for tensor in (factor, shift) if tensor is not None)
        return _scale_and_shift(x, factor, shift)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = output_gradients
        x, factor = ctx.saved_tensors
        _, measures_weight, measures_bias, *_ = ctx.needs_input_grad
        weight_shares_B = _shares(_products(gradient, x), ctx) if measures_weight else None
        bias_shares_B = _shares(gradient, ctx) if measures_bias else None
        x_gradient = gradient if factor is None else (gradient * factor).to(x.dtype)
        return x_gradient, weight_shares_B, bias_shares_B, None, None, None, None


def _scale_and_shift(x: Tensor, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    scaled = x if factor is None else x * factor
    return scaled if shift is None else scaled + shift


def _products(gradient: Tensor, x: Tensor) -> Tensor:
    """Return ``g_t ⊙ x_t`` in float32, or for bfloat16 on a CUDA device in bfloat16, which has the same range.

    Sums of the products are in float32. Rounding each product adds no more error than the gradient's own rounding did.
    """
    if gradient.is_cuda and gradient.dtype == x.dtype == torch.bfloat16:
        return gradient * x
    return gradient.float() * x


def _shares(products: Tensor, ctx: Any) -> Tensor:  # noqa: ANN401 - torch's context
    """Return ``‖Σ_t p_t‖²`` per sequence, (B,); products are summed over the parameter's broadcast axes first."""
    own = _aligned(ctx.shape, products.dim())
    shared = [
        axis
        for axis, (mine, size) in enumerate(zip(own, products.shape, strict=True))
        if axis != ctx.token_axis and mine == 1 and size > 1
    ]
    if shared:
        dtype = torch.promote_types(products.dtype, torch.float32)
        products = products.sum(shared, keepdim=True, dtype=dtype)
    return row_sum_shares(products.movedim(ctx.token_axis, 0).flatten(1), ctx.context)


def _aligned(shape: Sequence[int], num_axes: int) -> tuple[int, ...]:
    """Return a parameter's shape with ones in front, as many as it needs for ``num_axes`` axes."""
    return (1,) * (num_axes - len(shape)) + tuple(shape)
