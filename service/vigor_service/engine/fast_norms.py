"""Exact norms of many sequences at once: one forward pass, one backward pass, input gradients only.

No weight gradient of the model ever exists. Every parameterised operation sees its input and its output gradient,
adds its parameters' share of each sequence's ``‖∇θ NLL‖²`` (engine/rules), and lets both go. Parameters that no rule
claims are exact all the same: autograd gives their gradient, one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.attention import packed_attention
from vigor_service.engine.interception import Measuring
from vigor_service.engine.measurement import Measurement
from vigor_service.engine.packing import PackedBatch, pack
from vigor_service.engine.plan import causal_model, hidden_states, make_plan
from vigor_service.engine.probes import Probes
from vigor_service.engine.rules.head import HeadSignals, head_loss
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence


class FastNorms:
    """Scores batches of one model. The model's parameters are frozen and the model is in eval mode from here on.

    Raises:
        UnsupportedModelError: the model's attention, decoder or head is not understood.
    """

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        model.requires_grad_(False).eval()
        self._model = causal_model(model)
        self.plan = make_plan(self._model, parameters)
        self.probes: Probes | None = None  # None: every norm is exact

    def score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Equal ``[exact_score(model, sequence, parameters) for sequence in sequences]``."""
        scorable = [sequence for sequence in sequences if sequence.num_loss_tokens]
        batches = [[sequence] for sequence in scorable] if self.plan.fallback else [scorable]
        scores = iter([score for batch in batches if batch for score in self._score_batch(batch)])
        return [next(scores) if sequence.num_loss_tokens else EMPTY_SCORE for sequence in sequences]

    def _score_batch(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        batch = pack(sequences, self._model.device)
        with torch.enable_grad():
            squared_norms_B, signals = self._measure(batch)
        norms_B = squared_norms_B.sqrt().tolist()
        rows = batch.loss_slices
        return [
            SequenceScore(
                num_loss_tokens=rows[b].stop - rows[b].start,
                grad_norm=norms_B[b] / (rows[b].stop - rows[b].start),  # of the mean, where NLL was summed
                mean_logprob=-signals.nll_M[rows[b]].mean().item(),
                mean_entropy=signals.entropy_M[rows[b]].mean().item(),
                self_certainty=signals.self_certainty_M[rows[b]].mean().item(),
            )
            for b in range(batch.num_sequences)
        ]

    def _measure(self, batch: PackedBatch) -> tuple[Tensor, HeadSignals]:
        """Return ``‖∇θ Σ_t NLL_t‖²`` per sequence, shape (B,), float64, and the signals."""
        measurement = Measurement(batch, tied_weight_VD=self.plan.tied_weight_VD, probes=self.probes)
        fallback = list(self.plan.fallback.values())
        for parameter in fallback:
            parameter.requires_grad_(True)
        try:
            measuring = Measuring(self.plan.claims, measurement)
            with packed_attention(self._model, batch), measuring:
                hidden_ND = hidden_states(self.plan.decoder, batch)
            measuring.check_all_seen()
            total, signals = head_loss(hidden_ND[batch.loss_rows_M], self.plan.head, measurement)
            leaves = [measurement.squared_norms_B, *fallback]
            squared_norms_B, *gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        finally:
            for parameter in fallback:
                parameter.requires_grad_(False)
        fallback_share = sum(gradient.double().square().sum() for gradient in gradients if gradient is not None)
        return squared_norms_B + fallback_share, signals
