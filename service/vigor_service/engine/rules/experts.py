"""Experts of a mixture: one linear layer for each of E experts in one 3-D parameter, each run on the rows routed to it.

Rows are sorted by expert, then by token, so that the rows R of one expert and one sequence lie together. With A (R, I)
their inputs and G (R, O) their output gradients, the sequence's gradient of that expert is GᵀA. The parameter's share
of ``‖∇‖²`` is the sum of ``‖GᵀA‖²`` over the experts; an expert without rows adds nothing. Shapes: S routed rows of N
tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import apply, runs, split, to_list
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.linear import weight_share


@dataclass(frozen=True, slots=True)
class Routing:
    """Which of N tokens each of the S rows belongs to, and how many rows each expert has, in the order of experts."""

    token_S: Tensor
    num_rows_E: list[int]
    num_tokens: int


def experts_linear(
    x_SI: Tensor, weight_E: Tensor, bias_EO: Tensor | None, routing: Routing, *, transposed: bool = False
) -> Tensor:
    """Return ``x_SI[rows of e] @ weight_E[e].T + bias_EO[e]`` for every expert e, shape (S, O).

    ``weight_E`` is (E, O, I), or (E, I, O) where ``transposed``. A torch function mode sees it as one operation.
    """
    tensors = (x_SI, weight_E) if bias_EO is None else (x_SI, weight_E, bias_EO)
    if has_torch_function(tensors):
        return handle_torch_function(experts_linear, tensors, x_SI, weight_E, bias_EO, routing, transposed=transposed)
    biases = [None] * len(weight_E) if bias_EO is None else bias_EO.unbind()
    weights = (weight_E.transpose(1, 2) if transposed else weight_E).unbind()
    pieces = zip(split(x_SI, routing.num_rows_E), weights, biases, strict=True)
    return torch.cat([F.linear(x_RI, weight_OI, bias_O) for x_RI, weight_OI, bias_O in pieces])


@dataclass(frozen=True, slots=True)
class ExpertsCall:
    """A call of ``experts_linear``."""

    x_SI: Tensor
    weight_E: Tensor
    bias_EO: Tensor | None
    routing: Routing
    transposed: bool
    rule: str = "experts"

    def parameters(self) -> list[Tensor]:
        return [self.weight_E] if self.bias_EO is None else [self.weight_E, self.bias_EO]

    def token_axes(self, num_tokens: int) -> list[int]:
        return [0] if self.routing.num_tokens == num_tokens else []

    def run(self, context: NormContext, leaf_of: Callable[[Tensor], Tensor | None], token_axis: int) -> Tensor:  # noqa: ARG002
        bias_leaf_B = None if self.bias_EO is None else leaf_of(self.bias_EO)
        return apply(_Experts, self.x_SI, leaf_of(self.weight_E), bias_leaf_B, self, context)


def from_experts_linear(
    x_SI: Tensor, weight_E: Tensor, bias_EO: Tensor | None, routing: Routing, *, transposed: bool = False
) -> ExpertsCall:
    """Recognise ``experts_linear``."""
    return ExpertsCall(x_SI, weight_E, bias_EO, routing, transposed)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x_SI: Tensor,
        weight_leaf_B: Tensor | None,  # noqa: ARG004 - the leaves' gradients are the result
        bias_leaf_B: Tensor | None,  # noqa: ARG004
        call: ExpertsCall,
        context: NormContext,
    ) -> Tensor:
        ctx.save_for_backward(x_SI, call.weight_E)
        ctx.routing, ctx.transposed, ctx.context = call.routing, call.transposed, context
        return experts_linear(x_SI, call.weight_E, call.bias_EO, call.routing, transposed=call.transposed)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient_SO,) = output_gradients
        x_SI, weight_E = ctx.saved_tensors
        weight_shares_B, bias_shares_B = _shares(
            x_SI, gradient_SO, ctx.routing, ctx.context, measures=ctx.needs_input_grad[1:3]
        )
        x_gradient_SI = None
        if ctx.needs_input_grad[0]:
            x_gradient_SI = experts_linear(gradient_SO, weight_E, None, ctx.routing, transposed=not ctx.transposed)
        return x_gradient_SI, weight_shares_B, bias_shares_B, None, None


def _shares(
    x_SI: Tensor, gradient_SO: Tensor, routing: Routing, context: NormContext, *, measures: tuple[bool, bool]
) -> list[Tensor | None]:
    """Return ``Σ_e ‖∇_e‖²`` per sequence, (B,), float64, of the weights and of the biases; None: not measured."""
    sequence_G, num_rows_G = _groups(routing, context)
    groups = list(zip(split(x_SI, num_rows_G), split(gradient_SO, num_rows_G), strict=True))
    shares: list[Tensor | None] = []
    for share_of, is_measured in zip((weight_share, _bias_share), measures, strict=True):
        shares_G = [share_of(x_RI, gradient_RO) for x_RI, gradient_RO in groups] if is_measured else []
        none_B = torch.zeros_like(context.squared_norms_B)
        shares.append(none_B.index_add_(0, sequence_G, torch.stack(shares_G)) if is_measured else None)
    return shares


def _groups(routing: Routing, context: NormContext) -> tuple[Tensor, list[int]]:
    """Return the sequence and the number of rows of each (expert, sequence) pair with rows, in the rows' order."""
    num_sequences = context.batch.num_sequences
    sequence_S = context.batch.sequence_of_token_N()[routing.token_S]
    num_rows_E = torch.tensor(routing.num_rows_E, device=sequence_S.device)
    expert_S = torch.arange(len(num_rows_E), device=sequence_S.device).repeat_interleave(num_rows_E)
    group_G, num_rows_G = runs(expert_S * num_sequences + sequence_S)
    return group_G % num_sequences, to_list(num_rows_G)


def _bias_share(x_RI: Tensor, gradient_RO: Tensor) -> Tensor:  # noqa: ARG001 - beside weight_share
    """Return the share of one expert's bias for one sequence, a float64 scalar."""
    return squared_norm(gradient_RO.float().sum(0))
