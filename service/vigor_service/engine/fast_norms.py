"""Exact norms of many sequences at once: one forward pass, one backward pass, input gradients only.

No weight gradient of the model ever exists. Every parameterised operation sees its input and its output gradient,
adds its parameters' share of each sequence's ``‖∇θ NLL‖²`` (engine/rules), and lets both go. Parameters that no rule
claims are exact all the same: autograd gives their gradient, one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.batches import TOKENS_AT_FULL_RATE, queues, small_batches
from vigor_service.engine.interception import Measuring, RecordingLinears
from vigor_service.engine.measurement import Measurement
from vigor_service.engine.packing import pack, pack_prompts
from vigor_service.engine.plan import causal_model, make_plan
from vigor_service.engine.probes import Probes
from vigor_service.engine.prompts import PromptRows, shared_prompts
from vigor_service.engine.rules.head import HeadSignals, head_loss
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence
from vigor_service.engine.workers import Workers


class FastNorms:
    """Scores batches of one model. The model's parameters are frozen and the model is in eval mode from here on.

    Raises:
        UnsupportedModelError: the model's decoder, experts or head are not understood.
    """

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        model.requires_grad_(False).eval()
        self._model = causal_model(model)
        self._workers = Workers() if self._model.device.type == "cpu" else None
        self.plan = make_plan(self._model, parameters)
        self.probes: Probes | None = None  # None: every norm is exact

    def score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Equal ``[exact_score(model, sequence, parameters) for sequence in sequences]``."""
        distinct = [sequence for sequence in dict.fromkeys(sequences) if sequence.num_loss_tokens]
        scores: dict[TokenSequence, SequenceScore] = {}
        if distinct:
            with self.plan.decoder.prepared(), self._fallback_requiring_grad():
                scores = self._score_distinct(distinct)
        return [scores.get(sequence, EMPTY_SCORE) for sequence in sequences]

    def _score_distinct(self, sequences: Sequence[TokenSequence]) -> dict[TokenSequence, SequenceScore]:
        prompts = shared_prompts(sequences) if self.plan.decoder.layout == "packed" else []
        prompt_rows = self._prompt_rows(prompts)
        batches = self._batches(sequences)
        if self._workers is None or len(batches) == 1 or self.plan.one_at_a_time:
            # what no rule knows may change the model while it runs, as PEFT does for experts: one thread at a time
            scored = [[self._score_batch(batch, prompt_rows) for batch in batches]]
        else:
            scored = self._workers.run(
                lambda batch: self._score_batch(batch, prompt_rows), queues(batches, num_queues=self._workers.count)
            )
        return {sequence: score for queue in scored for batch in queue for sequence, score in batch.items()}

    def _batches(self, sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        if self.plan.one_at_a_time:
            return [[sequence] for sequence in sequences]
        if self._workers is None:
            return [list(sequences)]
        return small_batches(sequences, num_tokens=TOKENS_AT_FULL_RATE)

    @torch.no_grad()
    def _prompt_rows(self, prompts: Sequence[tuple[int, ...]]) -> PromptRows:
        if not prompts:
            return PromptRows({}, {})
        batch = pack_prompts(prompts, self._model.device)
        recording = RecordingLinears(self.plan.claims)
        with self.plan.decoder.given(batch), recording:
            self.plan.decoder.hidden_states(batch)
        return PromptRows(dict(zip(prompts, batch.token_slices, strict=True)), recording.outputs)

    def _score_batch(
        self, sequences: Sequence[TokenSequence], prompt_rows: PromptRows
    ) -> dict[TokenSequence, SequenceScore]:
        batch = pack(sequences, self._model.device)
        measurement = Measurement(
            batch,
            tied_weight_VD=self.plan.tied_weight_VD,
            known_rows=prompt_rows.in_batch(sequences, batch),
            probes=self.probes,
        )
        with torch.enable_grad():
            squared_norms_B, signals = self._measure(measurement)
        norms = squared_norms_B.sqrt().tolist()
        rows = batch.loss_slices
        return {
            sequence: _score(norm, signals, rows) for sequence, norm, rows in zip(sequences, norms, rows, strict=True)
        }

    def _measure(self, measurement: Measurement) -> tuple[Tensor, HeadSignals]:
        """Return ``‖∇θ Σ_t NLL_t‖²`` per sequence, shape (B,), float64, and the signals."""
        batch = measurement.batch
        measuring = Measuring(self.plan.claims, measurement)
        with self.plan.decoder.given(batch), measurement.keeping_little(), measuring:
            hidden_ND = self.plan.decoder.hidden_states(batch)
        measuring.check_all_seen()
        total, signals = head_loss(hidden_ND[batch.loss_rows_M], self.plan.head, measurement)
        leaves = [measurement.squared_norms_B, *self.plan.fallback.values()]
        squared_norms_B, *gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        fallback_share = sum(gradient.double().square().sum() for gradient in gradients if gradient is not None)
        return squared_norms_B + fallback_share, signals

    @contextmanager
    def _fallback_requiring_grad(self) -> Iterator[None]:
        for parameter in self.plan.fallback.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.plan.fallback.values():
                parameter.requires_grad_(False)


def _score(norm_of_sum: float, signals: HeadSignals, rows: slice) -> SequenceScore:
    num_loss_tokens = rows.stop - rows.start
    return SequenceScore(
        num_loss_tokens=num_loss_tokens,
        grad_norm=norm_of_sum / num_loss_tokens,  # of the mean, where NLL was summed
        mean_logprob=-signals.nll_M[rows].mean().item(),
        mean_entropy=signals.entropy_M[rows].mean().item(),
        self_certainty=signals.self_certainty_M[rows].mean().item(),
    )
