"""Where a completion's gradient norm comes from: from which positions of the sequence, and from which parameters.

With g the gradient of the mean NLL, every use of a parameter adds a part ``g_t`` at each position t where it runs, so
that ``g = Σ_t g_t``. The share of a position is ``⟨g_t, g⟩ / ‖g‖²``: all shares sum to 1, and one that works against
the others is negative. The share of a parameter p is ``‖g_p‖² / ‖g‖²``. One sequence at a time, by autograd, with the
model as it is: made for inspection, not for speed. Shapes: L positions, prompt and completion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, nan, sqrt

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from transformers import PreTrainedModel

from vigor_service.engine.attribution.module_labels import module_labels
from vigor_service.engine.attribution.position_products import RecordingUses, position_claims
from vigor_service.engine.memory.out_of_memory import NoMemoryLeftError, is_out_of_memory, release_memory
from vigor_service.engine.norms.reference import loss_logits, requiring_grad, token_nll
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import gradients_of, to_list
from vigor_service.engine.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class Attribution:
    """Shares of ``grad_norm ** 2``; all are NaN where that is 0 or not finite.

    ``position_shares`` (one for each token of prompt and completion) and ``unresolved_share`` sum to 1, and so do
    ``parameter_shares``. ``unresolved_share`` is that of the parameters ``unresolved``, which are used in a way in
    which positions cannot be told apart.
    """

    num_loss_tokens: int
    grad_norm: float
    position_shares: list[float]
    parameter_shares: Mapping[str, float]
    unresolved_share: float
    unresolved: list[str]
    module_labels: Mapping[str, str]  # parameter -> where it stands, in words

    @property
    def scaled_grad_norm(self) -> float:
        """``grad_norm * sqrt(T)``."""
        return self.grad_norm * sqrt(self.num_loss_tokens)


@dataclass(frozen=True, slots=True)
class _Part:
    """What some parameters add: ``‖g_p‖²`` of each; ``⟨g_t, g⟩``, summed over those that are not unresolved."""

    squared_norms: Mapping[str, float]
    products_L: Tensor
    unresolved: list[str]


def attribute(
    model: PreTrainedModel, sequence: TokenSequence, parts: Iterable[Mapping[str, nn.Parameter]]
) -> Attribution:
    """Attribute the norm that ``exact_score`` finds over all parts; gradients of one part at a time are in memory.

    Raises:
        ValueError: no token counts in the loss.
    """
    if sequence.num_loss_tokens == 0:
        raise ValueError("no token counts in the loss: there is no gradient")
    measured = [_measure(model, sequence, part) for part in parts]
    squared_norms = {name: value for part in measured for name, value in part.squared_norms.items()}
    unresolved = [name for part in measured for name in part.unresolved]
    total = sum(squared_norms.values())
    unit = 1 / total if total > 0 and isfinite(total) else nan
    products_L = torch.stack([part.products_L for part in measured]).sum(0)
    return Attribution(
        num_loss_tokens=sequence.num_loss_tokens,
        grad_norm=sqrt(total),
        position_shares=to_list(products_L * unit),
        parameter_shares={name: value * unit for name, value in squared_norms.items()},
        unresolved_share=sum(squared_norms[name] for name in unresolved) * unit,
        unresolved=unresolved,
        module_labels=module_labels(model, squared_norms),
    )


def attribute_within_memory(
    model: PreTrainedModel, sequence: TokenSequence, parts: Iterable[Mapping[str, nn.Parameter]]
) -> Attribution:
    """Equal ``attribute``; where memory runs out, everything that was held is free again.

    Raises:
        NoMemoryLeftError: it ran out.
        ValueError: no token counts in the loss.
    """
    attribution = _attribute_or_none(model, sequence, parts)
    if attribution is None:
        release_memory()  # only here: inside the except block the traceback keeps tensors alive
        raise NoMemoryLeftError(f"there is no memory to attribute {sequence.num_tokens} tokens")
    return attribution


def _attribute_or_none(
    model: PreTrainedModel, sequence: TokenSequence, parts: Iterable[Mapping[str, nn.Parameter]]
) -> Attribution | None:
    try:
        return attribute(model, sequence, parts)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _measure(model: PreTrainedModel, sequence: TokenSequence, part: Mapping[str, nn.Parameter]) -> _Part:
    recording = RecordingUses(part, position_claims(model, part), sequence.num_tokens)
    with requiring_grad(model, part.values()):
        with recording:
            logits_TV = loss_logits(model, sequence, runs_all_positions=True)
        loss = token_nll(logits_TV, sequence).mean()
        leaves = [*map(get_gradient_edge, part.values()), *(use.output for use in recording.uses)]
        found = gradients_of(loss, leaves)
    gradients, output_gradients = found[: len(part)], found[len(part) :]
    return _Part(
        squared_norms={
            name: 0.0 if gradient is None else squared_norm(gradient).item()
            for name, gradient in zip(part, gradients, strict=True)
        },
        products_L=recording.products(gradients, output_gradients),
        unresolved=[name for name in part if name in recording.unresolved],
    )
