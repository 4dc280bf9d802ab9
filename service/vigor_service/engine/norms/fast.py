"""Exact norms of many sequences at once: one forward pass, one backward pass, input gradients only.

The model's weight gradients never exist all at once. Every parameterised operation sees its input and its output
gradient, adds its parameters' share of each sequence's ``‖∇θ NLL‖²`` (engine/rules), and releases both. Norms of
parameters that no rule claims are exact too: autograd gives their gradient, one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.batching.packing import PackedBatch
from vigor_service.engine.batching.shared_prefixes import KnownRows, Prompt, PromptRows, num_tokens_without
from vigor_service.engine.memory.activation_checkpointing import (
    Checkpoints,
    checkpointable,
    checkpointing,
    measured_layers,
)
from vigor_service.engine.memory.activation_policy import (
    Activations,
    Demand,
    LayerBytes,
    choose_activations,
    room_bytes,
)
from vigor_service.engine.memory.free_memory import free_bytes
from vigor_service.engine.model.decoder import Layout, decoder_layers
from vigor_service.engine.model.unwrap import causal_model
from vigor_service.engine.norms.op_interception import NormInterception
from vigor_service.engine.norms.passes import Passes
from vigor_service.engine.norms.plan import LAYOUTS, make_plan
from vigor_service.engine.norms.signals import scores_of
from vigor_service.engine.ops.hutchinson import SketchVectors
from vigor_service.engine.ops.sums import squared_norm
from vigor_service.engine.ops.typed_torch import gradients_of, to_list
from vigor_service.engine.rules.context import NormContext
from vigor_service.engine.rules.head import HeadSignals, head_loss
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Measured:
    """Results of one pass for B sequences: ``‖∇θ Σ_t NLL_t‖²`` (B,), float64, signals, and shares by parameter name."""

    squared_norms_B: Tensor
    signals: HeadSignals
    shares: Mapping[str, Tensor]


class FastNorms:
    """Scores batches of one model. The model's parameters are frozen and the model is in eval mode from here on.

    ``sharded_layers`` are the decoder layers of a model that is sharded over processes, which run passes in lockstep
    (see ``sharding``). ``parameters`` are then those that modules have while they are gathered. None: the model is not
    sharded.

    Raises:
        UnsupportedModelError: the model's decoder, experts or head are not supported in any of the layouts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        *,
        layouts: Sequence[Layout] = LAYOUTS,
        free_bytes: Callable[[torch.device], int | None] = free_bytes,
        sharded_layers: Sequence[nn.Module] | None = None,
    ) -> None:
        model.requires_grad_(False).eval()
        self._model = causal_model(model)
        self.plan = make_plan(self._model, parameters, layouts)
        self.passes = Passes(self.plan, self._model.device, in_lockstep=sharded_layers is not None)
        self._parameters = parameters
        self.sketch: SketchVectors | None = None  # None: every norm is exact
        self.layers = (
            measured_layers(decoder_layers(self._model) or [], parameters.values())
            if sharded_layers is None
            else list(sharded_layers)
        )
        self.max_activation_bytes: int | None = None  # None: what free memory allows
        self._layer_bytes = LayerBytes.of(self._model, self.layers)
        self._free_bytes = free_bytes

    def score(
        self, sequences: Sequence[TokenSequence], *, activations: Activations | None = None
    ) -> list[SequenceScore]:
        """Return ``[exact_score(model, sequence, parameters) for sequence in sequences]``.

        ``activations`` None: the fastest choice that free memory and ``max_activation_bytes`` allow, with as few layers
        run again as possible. Layers run again only if ``layers`` is not empty.
        """
        scores = self._run(sequences, activations, _scores)
        return [scores.get(sequence, EMPTY_SCORE) for sequence in sequences]

    def squared_shares(
        self, sequences: Sequence[TokenSequence], *, activations: Activations | None = None
    ) -> list[dict[str, float]]:
        """Return for each sequence ``{name: grad.double().square().sum()}``, with the gradients of its mean loss.

        A sequence's values add up to the square of the norm that ``score`` returns, and come from the same passes.
        """
        shares = self._run(
            sequences, activations, _shares, {parameter: name for name, parameter in self._parameters.items()}
        )
        return [shares[sequence] for sequence in sequences]

    def _run(
        self,
        sequences: Sequence[TokenSequence],
        activations: Activations | None,
        result_of: Callable[[_Measured, Sequence[slice]], list[R]],
        apart: Mapping[nn.Parameter, str] | None = None,
    ) -> dict[TokenSequence, R]:
        distinct = [sequence for sequence in dict.fromkeys(sequences) if sequence.num_loss_tokens]
        if not distinct:
            return {}
        batches = self.passes.batches(distinct)
        prompts = self.passes.shared_prompts(batches)
        activations, num_twice = (
            self._choose_activations(batches, prompts) if activations is None else (activations, len(self.layers))
        )
        twice = self.layers[:num_twice] if activations is Activations.CHECKPOINT else []
        prompt_rows = PromptRows({}, {})

        def run_batch(batch: list[TokenSequence]) -> list[tuple[TokenSequence, R]]:
            packed = self.plan.decoder.pack(batch)
            measured = self._measure_batch(packed, prompt_rows.in_batch(batch, packed), activations, apart)
            return list(zip(batch, result_of(measured, packed.loss_slices), strict=True))

        with self.plan.decoder.prepared(), checkpointable(twice), self._fallback_requiring_grad():
            if not twice or twice != self.layers:
                prompt_rows = self.passes.prompt_rows(prompts)
            return {sequence: result for batch in self.passes.map(run_batch, batches) for sequence, result in batch}

    def demand(self, sequences: Sequence[TokenSequence]) -> Demand:
        """Return an estimate of the memory that scoring distinct sequences takes at once.

        Rows of a shared prompt count once, and are kept whether or not layers run twice.
        """
        batches = self.passes.batches(sequences)
        return self._demand(batches, self.passes.shared_prompts(batches))

    def _demand(self, batches: Sequence[list[TokenSequence]], prompts: Sequence[Prompt]) -> Demand:
        shared = set(prompts)
        largest_first = sorted((num_tokens_without(shared, batch) for batch in batches), reverse=True)
        return self._layer_bytes.demand(
            sum(largest_first[: self.passes.num_at_once(batches)]),
            num_prompt_tokens=sum(map(len, prompts)),
            num_layers=len(self.layers),
        )

    def _choose_activations(
        self, batches: Sequence[list[TokenSequence]], prompts: Sequence[Prompt]
    ) -> tuple[Activations, int]:
        device = self._model.device
        room = room_bytes(self._free_bytes(device), self.max_activation_bytes)
        return choose_activations(device, self._demand(batches, prompts), room)

    def _measure_batch(
        self,
        batch: PackedBatch,
        known_rows: KnownRows,
        activations: Activations,
        apart: Mapping[nn.Parameter, str] | None,
    ) -> _Measured:
        context = NormContext(
            batch,
            tied_weight_VD=self.plan.tied_weight_VD,
            apart=apart,
            known_rows=known_rows,
            sketch=self.sketch,
            keeps_all=activations is Activations.KEEP,
        )
        with torch.enable_grad():
            return self._measure(context, activations)

    def _measure(self, context: NormContext, activations: Activations) -> _Measured:
        batch, fallback = context.batch, self.plan.fallback
        interception = NormInterception(self.plan.claims, context, self.plan.untouched.values())

        @contextmanager
        def observed() -> Generator[None]:
            with self.plan.decoder.given(batch), context.rematerializing(), interception:
                yield

        leaves = context.leaves()
        checkpoints = Checkpoints(interception.suspended, observed, [*leaves, *fallback.values()])
        with checkpointing(checkpoints) if activations is Activations.CHECKPOINT else nullcontext(), observed():
            hidden_ND = self.plan.decoder.hidden_states(batch)
        total, signals = head_loss(hidden_ND[batch.loss_rows_M], self.plan.head, context)
        gradients = gradients_of(total, [*leaves, *fallback.values()])
        interception.check_all_seen()
        shares = context.shares_apart(gradients[: len(leaves)])
        shares |= _squared(fallback, gradients[len(leaves) :])
        common_B = torch.zeros_like(context.squared_norms_B) if gradients[0] is None else gradients[0]
        return _Measured(torch.stack([common_B, *shares.values()]).sum(0), signals, shares)

    @contextmanager
    def _fallback_requiring_grad(self) -> Generator[None]:
        for parameter in self.plan.fallback.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.plan.fallback.values():
                parameter.requires_grad_(False)


def _squared(parameters: Mapping[str, nn.Parameter], gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Return name -> squared norm of the gradient, shape (1,), of the parameters that have a gradient."""
    named = zip(parameters, gradients, strict=True)
    return {name: squared_norm(gradient)[None] for name, gradient in named if gradient is not None}


def _shares(measured: _Measured, loss_slices: Sequence[slice]) -> list[dict[str, float]]:
    lengths_B = torch.tensor([rows.stop - rows.start for rows in loss_slices], dtype=torch.float64)
    shares = {name: to_list(share_B.cpu() / lengths_B.square()) for name, share_B in measured.shares.items()}
    return [{name: values[b] for name, values in shares.items()} for b in range(len(loss_slices))]


def _scores(measured: _Measured, loss_slices: Sequence[slice]) -> list[SequenceScore]:
    lengths_B = torch.tensor([rows.stop - rows.start for rows in loss_slices], device=measured.squared_norms_B.device)
    norms_B = measured.squared_norms_B.sqrt() / lengths_B  # for the mean NLL: the pass used the sum
    return scores_of(measured.signals, loss_slices, norms_B)
