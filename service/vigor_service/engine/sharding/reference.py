"""The reference of a sharded model: autograd through FSDP2, which hands each rank its part of a gradient."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from vigor_service.engine.norms.reference import loss_logits, token_nll
from vigor_service.engine.norms.self_check import SquaredShares
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import to_list
from vigor_service.engine.sequences import TokenSequence
from vigor_service.engine.sharding.ranks import Ranks
from vigor_service.engine.sharding.units import ShardedModel, local_part


def exact_squared_shares(model: ShardedModel, ranks: Ranks, sequence: TokenSequence) -> SquaredShares:
    """Return what ``self_check.exact_squared_shares`` returns; all ranks must call it with the same sequence.

    FSDP2 gives a rank its rows of the mean of all ranks' gradients. All ranks run the same sequence, so that the mean
    is its gradient, and the squared norms of all parts add up to the squared norm of the whole gradient.
    """
    with model.requiring_grad():
        model.run_alike(lambda: _run_backward(model.root, sequence))
        names: list[str] = []
        squares: list[torch.Tensor] = []
        for name, parameter in model.named_parts():
            names.append(name)
            squares.append(_squared_part(parameter))
            parameter.grad = None
    return dict(zip(names, to_list(ranks.total(torch.stack(squares))), strict=True))


def _run_backward(root: PreTrainedModel, sequence: TokenSequence) -> None:
    token_nll(loss_logits(root, sequence), sequence).mean().backward()  # pyright: ignore[reportUnknownMemberType]


def _squared_part(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None:
        return torch.zeros((), dtype=torch.float64, device=local_part(parameter).device)
    return squared_norm(local_part(parameter.grad))
