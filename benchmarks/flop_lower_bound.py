"""The FLOP lower bound: floating point operations that exact norms need at least, with every product done once.

A sequence has T rows (it ends at its last loss position), of which M count in the loss. The decoder has P parameters in
its layers (without lookup tables and head), a head of D · V, and L layers of H query heads of width d. Then:

    layers      2 P T forward, 2 P T for input gradients                      = 4 P T
    head        2 D V M forward, 2 D V M for input gradients                  = 4 D V M
    attention   2 products forward (q kᵀ, p v), 4 backward (dv, dp, dq, dk), each of
                2 d operations for each of the T (T + 1) / 2 causal pairs     = 6 L H d T (T + 1)

Nothing is counted for weight gradients, for the norms themselves, for recomputation, or for anything that is not a
matrix product. Rows of a prompt that several sequences share need only one forward pass: ``prompts_once`` counts
their part of 2 P T and of the forward attention once. Their backward pass differs from sequence to sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from vigor_service.engine.sequences import TokenSequence


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the bound depends on: P, D · V, L and H · d."""

    layer_parameters: int
    head_parameters: int
    num_layers: int
    attention_width: int


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Return the sizes of a decoder whose layers attend to all earlier positions.

    Raises:
        ValueError: a layer does not attend to all of them (its attention would be overestimated), or there is no head.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"the FLOP lower bound is known for full attention alone, not for {', '.join(sorted(kinds))}")
    output = model.get_output_embeddings()
    if output is None:
        raise ValueError(f"{type(model).__name__} has no output head")
    head = output.get_parameter("weight")
    lookups = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    outside = {head, *lookups}  # one tensor where they are tied
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Sizes(
        layer_parameters=model.num_parameters() - sum(parameter.numel() for parameter in outside),
        head_parameters=head.numel(),
        num_layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * head_dim,
    )


def lower_bound_flops(sizes: Sizes, sequences: Sequence[TokenSequence], *, prompts_once: bool) -> int:
    """Return the operations of the module's formula, summed over the sequences."""
    lengths = [sequence.loss_positions()[-1] + 1 for sequence in sequences]
    known = _known_rows(sequences) if prompts_once else [0] * len(lengths)
    rows, pairs = sum(lengths), sum(map(_pairs, lengths))
    forward_rows, forward_pairs = rows - sum(known), pairs - sum(map(_pairs, known))
    head_rows = sum(sequence.num_loss_tokens for sequence in sequences)
    layers = 2 * sizes.layer_parameters * (forward_rows + rows)
    attention = 2 * sizes.num_layers * sizes.attention_width * (2 * forward_pairs + 4 * pairs)
    return layers + 4 * sizes.head_parameters * head_rows + attention


def _known_rows(sequences: Sequence[TokenSequence]) -> list[int]:
    """Return for each sequence how many of its first rows it shares with an earlier sequence of the same prompt."""
    seen: set[tuple[int, ...]] = set()
    known: list[int] = []
    for sequence in sequences:
        known.append(len(sequence.prompt_ids) if sequence.prompt_ids in seen else 0)
        seen.add(sequence.prompt_ids)
    return known


def _pairs(length: int) -> int:
    """Return the number of pairs of a row and a row that it attends to, itself included."""
    return length * (length + 1) // 2
