"""Exact norms of many sequences at once: one forward pass, one backward pass, input gradients only.

No weight gradient of the model ever exists. Every parameterised operation sees its input and its output gradient,
adds its parameters' share of each sequence's ``‖∇θ NLL‖²`` (engine/rules), and lets both go. Parameters that no rule
claims are exact all the same: autograd gives their gradient, one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vigor_service.engine.batches import TOKENS_AT_FULL_RATE, queues, small_batches
from vigor_service.engine.checkpoints import (
    Checkpoints,
    bytes_kept_per_token,
    checkpointable,
    checkpointing,
    measured_layers,
)
from vigor_service.engine.decoder import decoder_layers
from vigor_service.engine.free_memory import free_bytes
from vigor_service.engine.interception import Measuring, RecordingLinears
from vigor_service.engine.measurement import Measurement
from vigor_service.engine.memory import num_tokens
from vigor_service.engine.packing import pack, pack_prompts
from vigor_service.engine.plan import causal_model, make_plan
from vigor_service.engine.probes import Probes
from vigor_service.engine.prompts import PromptRows, shared_prompts
from vigor_service.engine.rules.head import HeadSignals, head_loss
from vigor_service.engine.sequences import EMPTY_SCORE, SequenceScore, TokenSequence
from vigor_service.engine.workers import Workers

_KEPT_SHARE = 0.5  # of the free memory: where autograd would keep more, layers are checkpointed


class FastNorms:
    """Scores batches of one model. The model's parameters are frozen and the model is in eval mode from here on.

    Raises:
        UnsupportedModelError: the model's decoder, experts or head are not understood.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        *,
        free_bytes: Callable[[torch.device], int | None] = free_bytes,
    ) -> None:
        model.requires_grad_(False).eval()
        self._model = causal_model(model)
        self._workers = Workers() if self._model.device.type == "cpu" else None
        self.plan = make_plan(self._model, parameters)
        self.probes: Probes | None = None  # None: every norm is exact
        self.layers = measured_layers(decoder_layers(self._model) or [], parameters.values())
        self._bytes_kept_per_token = bytes_kept_per_token(self._model, self.layers)
        self._free_bytes = free_bytes

    def score(self, sequences: Sequence[TokenSequence], *, checkpointed: bool | None = None) -> list[SequenceScore]:
        """Equal ``[exact_score(model, sequence, parameters) for sequence in sequences]``.

        Layers are checkpointed or not as told, or as free memory asks for; never if there are no ``layers``.
        """
        distinct = [sequence for sequence in dict.fromkeys(sequences) if sequence.num_loss_tokens]
        batches = self._batches(distinct)
        if checkpointed is None:
            checkpointed = self._memory_asks_for_checkpoints(batches)
        layers = self.layers if checkpointed else []
        scores: dict[TokenSequence, SequenceScore] = {}
        if distinct:
            with self.plan.decoder.prepared(), checkpointable(layers), self._fallback_requiring_grad():
                scores = self._score_batches(batches, checkpointed=bool(layers))
        return [scores.get(sequence, EMPTY_SCORE) for sequence in sequences]

    def _score_batches(
        self, batches: Sequence[list[TokenSequence]], *, checkpointed: bool
    ) -> dict[TokenSequence, SequenceScore]:
        sequences = [sequence for batch in batches for sequence in batch]
        shares_prompts = self.plan.decoder.layout == "packed" and not checkpointed  # all layers' rows would be kept
        prompt_rows = self._prompt_rows(shared_prompts(sequences) if shares_prompts else [])

        def score_batch(batch: list[TokenSequence]) -> dict[TokenSequence, SequenceScore]:
            return self._score_batch(batch, prompt_rows, checkpointed=checkpointed)

        if self._workers is None or self._num_at_once(batches) == 1:
            scored = [list(map(score_batch, batches))]
        else:
            scored = self._workers.run(score_batch, queues(batches, num_queues=self._workers.count))
        return {sequence: score for queue in scored for batch in queue for sequence, score in batch.items()}

    def _num_at_once(self, batches: Sequence[list[TokenSequence]]) -> int:
        if self._workers is None or self.plan.one_at_a_time:
            return 1  # what no rule knows may change the model while it runs, as PEFT does for experts
        return min(self._workers.count, len(batches))

    def _memory_asks_for_checkpoints(self, batches: Sequence[list[TokenSequence]]) -> bool:
        if not self.layers or not batches:
            return False
        largest_first = sorted((num_tokens(batch) for batch in batches), reverse=True)
        num_tokens_at_once = sum(largest_first[: self._num_at_once(batches)])
        free = self._free_bytes(self._model.device)
        return free is not None and num_tokens_at_once * self._bytes_kept_per_token > _KEPT_SHARE * free

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
        self, sequences: Sequence[TokenSequence], prompt_rows: PromptRows, *, checkpointed: bool
    ) -> dict[TokenSequence, SequenceScore]:
        batch = pack(sequences, self._model.device)
        measurement = Measurement(
            batch,
            tied_weight_VD=self.plan.tied_weight_VD,
            known_rows=prompt_rows.in_batch(sequences, batch),
            probes=self.probes,
        )
        with torch.enable_grad():
            squared_norms_B, signals = self._measure(measurement, checkpointed=checkpointed)
        norms = squared_norms_B.sqrt().tolist()
        rows = batch.loss_slices
        return {
            sequence: _score(norm, signals, rows) for sequence, norm, rows in zip(sequences, norms, rows, strict=True)
        }

    def _measure(self, measurement: Measurement, *, checkpointed: bool) -> tuple[Tensor, HeadSignals]:
        """Return ``‖∇θ Σ_t NLL_t‖²`` per sequence, shape (B,), float64, and the signals."""
        batch, fallback = measurement.batch, list(self.plan.fallback.values())
        measuring = Measuring(self.plan.claims, measurement)

        @contextmanager
        def observed() -> Iterator[None]:
            with self.plan.decoder.given(batch), measurement.keeping_little(), measuring:
                yield

        checkpoints = Checkpoints(measuring.suspended, observed, measurement.squared_norms_B, fallback)
        with checkpointing(checkpoints) if checkpointed else nullcontext(), observed():
            hidden_ND = self.plan.decoder.hidden_states(batch)
        total, signals = head_loss(hidden_ND[batch.loss_rows_M], self.plan.head, measurement)
        leaves = [measurement.squared_norms_B, *fallback]
        squared_norms_B, *gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        measuring.check_all_seen()
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
