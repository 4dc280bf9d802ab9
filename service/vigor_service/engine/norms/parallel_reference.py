"""The reference for several sequences: on a CPU, each thread scores one sequence at a time with a model replica.

Two threads that each run a forward and backward pass of one sequence take less time than two successive passes that
share both threads. No operation is forked and joined, and one core's caches hold one sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from vigor_service.engine.batching.cpu_workers import Workers
from vigor_service.engine.batching.microbatches import queues
from vigor_service.engine.memory.activation_policy import LayerBytes, room_bytes
from vigor_service.engine.memory.free_memory import free_bytes
from vigor_service.engine.model.decoder import num_token_ids
from vigor_service.engine.norms.reference import (
    ELEMENTS_AT_ONCE,
    exact_score,
    exact_signals,
    requiring_grad,
    score_requiring_grad,
)
from vigor_service.engine.norms.replicas import replica
from vigor_service.engine.sequences import SequenceScore, TokenSequence

logger = logging.getLogger(__name__)

_TIMES_ESTIMATE = 3  # everything is kept, the logits and their gradient too
_LOSS_BYTES_PER_LOGIT = 4 * 8  # float64 copies, of some rows at once


class Reference:
    """Scores sequences by ``exact_score``.

    ``most_bytes`` is the approximate limit of what the passes keep at once (None: a share of the free memory).
    ``num_threads`` is the limit of how many passes run at once (None: torch's number of threads).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        measured: Mapping[str, nn.Parameter],
        *,
        most_bytes: int | None = None,
        free_bytes: Callable[[torch.device], int | None] = free_bytes,
        num_threads: int | None = None,
    ) -> None:
        self._model = model
        self._measured = measured
        self._most_bytes = most_bytes
        self._free_bytes = free_bytes
        self._workers = Workers(num_threads) if model.device.type == "cpu" else None
        self._models = [model]  # one for each worker that has been needed
        self._gradient_bytes = sum(parameter.nbytes for parameter in measured.values())
        self._vocab_size = num_token_ids(model)
        self._bytes_per_token = _TIMES_ESTIMATE * LayerBytes.of(model, [model]).per_token
        self.num_lanes = 1 if self._workers is None else self._workers.count

    def score(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Return ``[exact_score(model, sequence, measured) for sequence in sequences]``."""
        models = self._replicas(min(self.num_at_once(sequences), len(sequences)))
        if self._workers is None or len(models) == 1:
            return [exact_score(self._model, sequence, self._measured) for sequence in sequences]
        lanes = zip(models, queues([[sequence] for sequence in sequences], num_queues=len(models)), strict=True)
        work = [[(model, sequence) for (sequence,) in lane] for model, lane in lanes]
        with requiring_grad(self._model, self._measured.values()):  # the replicas have the same parameters
            results = self._workers.run(self._score_one, work)
        scores = {sequence: score for lane in results for sequence, score in lane}
        return [scores[sequence] for sequence in sequences]

    def signals(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        """Return ``[exact_signals(model, sequence) for sequence in sequences]``."""
        return [exact_signals(self._model, sequence) for sequence in sequences]

    def num_at_once(self, sequences: Sequence[TokenSequence]) -> int:
        """Return how many of the sequences fit into memory with gradients and activations, at most ``num_lanes``."""
        room = room_bytes(self._free_bytes(self._model.device), self._most_bytes)
        if room is None or not sequences:
            return self.num_lanes
        return min(self.num_lanes, room // self._bytes_of(max(sequence.num_tokens for sequence in sequences)))

    def _bytes_of(self, num_tokens: int) -> int:
        logits = min(ELEMENTS_AT_ONCE, num_tokens * self._vocab_size)
        return self._gradient_bytes + num_tokens * self._bytes_per_token + logits * _LOSS_BYTES_PER_LOGIT

    def _score_one(self, lane: tuple[PreTrainedModel, TokenSequence]) -> tuple[TokenSequence, SequenceScore]:
        model, sequence = lane
        with torch.enable_grad():
            return sequence, score_requiring_grad(model, sequence, self._measured)

    def _replicas(self, count: int) -> list[PreTrainedModel]:
        """Return ``count`` models with the same weights, or fewer where the model cannot be copied."""
        try:
            self._models += [replica(self._model) for _ in range(len(self._models), count)]
        except (TypeError, RuntimeError) as error:
            logger.info("one sequence at a time: the model cannot be copied: %s", error)
            self._workers, self.num_lanes = None, 1
        return self._models[: max(1, count)]
