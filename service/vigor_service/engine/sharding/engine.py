"""The engine over several devices: what each of its ranks runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

from transformers import PreTrainedModel

from vigor_service.engine.attribution.attribution import Attribution
from vigor_service.engine.batching.microbatches import queues
from vigor_service.engine.engine import describe, score_fitting
from vigor_service.engine.interface import BatchResult, EngineInfo
from vigor_service.engine.memory.activation_policy import Activations
from vigor_service.engine.memory.free_memory import free_bytes
from vigor_service.engine.memory.malloc import HeapTrimming
from vigor_service.engine.memory.out_of_memory import FittingScorer
from vigor_service.engine.memory.token_budget import measure_batch_tokens, peak_memory, trial_sizes
from vigor_service.engine.model.rotary import forget_earlier_lengths
from vigor_service.engine.norms.signals import FastSignals
from vigor_service.engine.sequences import (
    EMPTY_SCORE,
    NORM_AND_SIGNALS,
    ScoreParts,
    SequenceScore,
    TokenSequence,
    UnsupportedByEngineError,
)
from vigor_service.engine.sharding.check import choose_layout
from vigor_service.engine.sharding.ranks import Ranks
from vigor_service.engine.sharding.units import ShardedModel, raise_first
from vigor_service.engine.sharding.weights import ShardedWeights

_NOTHING_TO_DO = TokenSequence((0,), (0,))
"""The sequence that a rank runs if it has no other, since it must gather layers with the other ranks."""


class ShardedEngine(ShardedWeights):
    """Implements `Scorer` on one rank: all ranks are called with the same arguments, and return the same.

    ``model`` was sharded by ``shard`` and has its values; ``names`` are the parameters that are measured. Sequences are
    divided among the ranks, balanced by their tokens, and each norm is computed by one rank. ``architecture`` is the
    name of the model's class before FSDP2 changed it. ``activation_bytes`` is the limit of ``Engine``, for each rank.

    Raises:
        UnshardableModelError: the fast path does not give this model's norms, and a sharded model has no other method.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ranks: Ranks,
        names: Sequence[str],
        *,
        name: str,
        architecture: str,
        activation_bytes: int | None = None,
    ) -> None:
        super().__init__(model)
        self._ranks = ranks
        self._name, self._architecture = name, architecture
        forget_earlier_lengths(model)
        self._shards = ShardedModel(model, names)
        self._fast, self._trust = choose_layout(self._shards, ranks)
        self._fast.max_activation_bytes = activation_bytes
        if not self._trust.layers_run_twice:
            self._fast.layers = []
        self._heap = HeapTrimming()
        frugal = partial(self._fast.score, activations=Activations.CHECKPOINT) if self._fast.layers else None
        self._fitting = FittingScorer(
            partial(self._score_together, "norms", self._fast.score),
            score_frugally=None if frugal is None else partial(self._score_together, "norms", frugal),
        )
        signals = FastSignals(self._fast.passes).score
        self._fitting_signals = FittingScorer(partial(self._score_together, "signals", signals))
        self._score_together("signals", signals, [])  # records which units a pass gathers

    @property
    def info(self) -> EngineInfo:
        return describe(
            self._model,
            self._shards.measured,
            self._fast,
            name=self._name,
            tied_embeddings=bool(self.aliases()),
            architecture=self._architecture,
        )

    @property
    def num_local_bytes(self) -> int:
        """Bytes of parameters that this rank holds at rest."""
        return self._shards.num_local_bytes

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        """Return the scores of the sequences, in their order, under the current weights.

        A sequence of more tokens than the self-check could cover counts as too long.

        Raises:
            NoMemoryLeftError: no sequence can be scored, however short.
            RuntimeError: a rank failed; all ranks raise the error.
        """
        most = self._trust.max_tokens
        too_long = {each: most for each in sequences if most is not None and each.num_tokens > most}
        fitting = self._fitting if parts.norm else self._fitting_signals
        result = score_fitting(fitting, [each for each in sequences if each not in too_long], parts)
        self._trim_heap()
        scores = iter(result.scores)
        return replace(
            result,
            scores=[EMPTY_SCORE if each in too_long else next(scores) for each in sequences],
            too_long={**result.too_long, **too_long},
        )

    def attribute(self, sequence: TokenSequence) -> Attribution:  # noqa: ARG002 - as Scorer has it
        """Refuse the request: an attribution reads weights at a time when layers are no longer gathered.

        Raises:
            UnsupportedByEngineError: always.
        """
        raise UnsupportedByEngineError("attribution is not available for a model divided among devices (--shard)")

    def measure_batch_tokens(self) -> int:
        """Measure how many tokens a batch may have, all ranks together (``memory/token_budget.py``)."""
        device, info = self._model.device, self.info
        own = measure_batch_tokens(
            lambda sequences: self._fitting.try_together(sequences) is not None,
            sizes=trial_sizes(device).times(self._ranks.size),
            max_sequence_tokens=info.max_sequence_tokens,
            vocab_size=info.vocab_size,
            peak=peak_memory(device),
            free_bytes=free_bytes(device),
            seconds=lambda: self._ranks.exchange(perf_counter())[0],  # one clock: all ranks make the same trials
        )
        return min(self._ranks.exchange(own))

    def _trim_heap(self) -> None:
        if self._model.device.type == "cpu":
            self._heap.after_batch()

    def _score_together(
        self,
        kind: str,
        score: Callable[[Sequence[TokenSequence]], list[SequenceScore]],
        sequences: Sequence[TokenSequence],
    ) -> list[SequenceScore]:
        """Score this rank's sequences, in as many passes as every other rank, and return the scores of all ranks."""
        shares = share_out([each for each in sequences if each.num_loss_tokens], self._ranks.size)
        passes = [self._fast.passes.batches(share) if share else [] for share in shares]
        own = passes[self._ranks.rank]
        num_passes = max(1, *map(len, passes))
        outcomes = [
            self._shards.run_pass(kind, partial(score, batch))
            for batch in [*own, *[[_NOTHING_TO_DO]] * (num_passes - len(own))]
        ]
        found = self._ranks.exchange(outcomes)
        raise_first(outcome.failure for of_rank in found for outcome in of_rank)
        scores = {
            sequence: score
            for batches, of_rank in zip(passes, found, strict=True)
            for batch, outcome in zip(batches, of_rank, strict=False)
            for sequence, score in zip(batch, outcome.result or (), strict=True)
        }
        return [scores.get(sequence, EMPTY_SCORE) for sequence in sequences]


def share_out(sequences: Sequence[TokenSequence], num_ranks: int) -> list[list[TokenSequence]]:
    """Return each rank's sequences, with about the same number of tokens for every rank."""
    filled = [[sequence for (sequence,) in queue] for queue in queues([[s] for s in sequences], num_queues=num_ranks)]
    return filled + [[] for _ in range(num_ranks - len(filled))]
