"""Mixture-of-experts layers, run through transformers' experts interface as operations that a rule recognises.

The implementation has its own registered name, so that the model's own implementation stays unchanged. Shapes: N
tokens, K experts for each, S = N K routed rows, D features.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from vigor_service.engine.model.implementations import running_under
from vigor_service.engine.ops.typed_torch import to_list, unflatten
from vigor_service.engine.rules.experts import Routing, experts_linear

IMPLEMENTATION = "vigor_experts"


class UnsupportedExpertsError(Exception):
    """The model's experts do something that this implementation does not do."""


@contextmanager
def experts_as_operations(module: nn.Module) -> Generator[None]:
    """Let the experts of a model, if it has any, run through ``experts_linear``, and restore the model afterwards."""
    with running_under(IMPLEMENTATION, "experts", module):
        yield


def _run_experts(
    experts: Any,  # noqa: ANN401 - any module that transformers' decorator has given its flags
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Return what the experts' own forward returns, (N, D). The arguments have the interface's names."""
    if experts.has_post_expert_norm or experts._is_expert_parallel:
        raise UnsupportedExpertsError(f"{type(experts).__name__} has a norm after each expert, or runs in parallel")
    order_S = top_k_index.flatten().argsort(stable=True)
    routing = _routing(order_S, top_k_index, experts.num_experts)
    outputs_SD = _project(experts, hidden_states[routing.token_S], routing)
    weighted_SD = outputs_SD * top_k_weights.flatten()[order_S][:, None]
    weighted_NKD = unflatten(weighted_SD[order_S.argsort()], 0, top_k_index.shape)
    return weighted_NKD.sum(1).to(hidden_states.dtype)


def _routing(order_S: Tensor, top_k_index_NK: Tensor, num_experts: int) -> Routing:
    num_tokens, num_choices = top_k_index_NK.shape
    num_rows_E = to_list(torch.bincount(top_k_index_NK.flatten(), minlength=num_experts))
    return Routing(order_S // num_choices, num_rows_E, num_tokens)


def _project(experts: Any, x_SD: Tensor, routing: Routing) -> Tensor:  # noqa: ANN401
    """Return the experts' outputs (S, D): up projection, activation, down projection."""
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    raw_SI = _linear(experts, up, x_SD, routing)
    hidden_SI = experts._apply_gate(raw_SI) if experts.has_gate else experts.act_fn(raw_SI)
    return _linear(experts, "down_proj", hidden_SI, routing)


def _linear(experts: Any, name: str, x_SI: Tensor, routing: Routing) -> Tensor:  # noqa: ANN401
    bias_EO = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return experts_linear(x_SI, getattr(experts, name), bias_EO, routing, transposed=experts.is_transposed)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _run_experts)  # pyright: ignore[reportUnknownMemberType]
