"""Attribution of a completion's gradient norm to positions of the sequence and to parameters.

With g the gradient of the mean NLL, every use of a parameter adds a part ``g_t`` at each position t where it runs, so
that ``g = Σ_t g_t``. The share of a position is ``⟨g_t, g⟩ / ‖g‖²``: all shares sum to 1, and a position whose part
opposes the others has a negative share. The share of a parameter p is ``‖g_p‖² / ‖g‖²``. It is computed by autograd on
the unmodified model, one sequence at a time: for inspection, not for speed. Shapes: L positions, prompt and completion.
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
    """Shares of ``grad_norm ** 2``; all are NaN if it is 0 or not finite.

    ``position_shares`` (one for each token of prompt and completion) and ``unresolved_share`` sum to 1, and so do
    ``parameter_shares``. ``unresolved_share`` is the share of the parameters in ``unresolved``, whose gradient cannot
    be split by position.
    """

    num_loss_tokens: int
    grad_norm: float
    position_shares: list[float]
    parameter_shares: Mapping[str, float]
    unresolved_share: float
    unresolved: list[str]
    module_labels: Mapping[str, str]  # parameter -> its place in the model, in words

    @property
    def scaled_grad_norm(self) -> float:
        """``grad_norm * sqrt(T)``."""
        return self.grad_norm * sqrt(self.num_loss_tokens)


@dataclass(frozen=True, slots=True)
class _Part:
    """Results for some of the parameters: ``‖g_p‖²`` of each, and ``⟨g_t, g⟩`` summed over the resolved ones."""

    squared_norms: Mapping[str, float]
    products_L: Tensor
    unresolved: list[str]


def attribute(
    model: PreTrainedModel, sequence: TokenSequence, parts: Iterable[Mapping[str, nn.Parameter]]
) -> Attribution:
    """Return the attribution of the norm that ``exact_score`` computes over the parameters of all parts.

    Gradients of one part at a time are in memory.

    Raises:
        ValueError: the sequence has no loss tokens.
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
    """Return the same as ``attribute``; if memory runs out, everything that was held is freed.

    Raises:
        NoMemoryLeftError: memory ran out.
        ValueError: the sequence has no loss tokens.
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
