"""A scorer without a model: numbers looked up in its tensors, so that other weights show in every score."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import nan

import torch

from vigor_service.engine.attribution.attribution import Attribution
from vigor_service.engine.interface import BatchResult, EngineInfo, Write
from vigor_service.engine.loading.checkpoint_names import CheckpointPlan, plan_of_own_names
from vigor_service.engine.memory.out_of_memory import FittingScorer, num_tokens
from vigor_service.engine.sequences import (
    EMPTY_SCORE,
    NORM_AND_SIGNALS,
    ScoreParts,
    SequenceScore,
    TokenSequence,
)

VOCAB_SIZE = 320
MAX_SEQUENCE_TOKENS = 64
MEASURED_BATCH_TOKENS = 1024
WAIT_SECONDS = 20.0


class FakeScorer:
    """Implements `Scorer`. ``gate`` holds batches back while it is clear, ``is_scoring`` tells that one is held.

    More than ``fitting_tokens`` at once do not fit into its memory; ``tries`` keeps the tokens of every try.
    ``fail_scoring`` and ``fail_loading`` are raised when set. ``batches`` keeps what was scored, ``parts`` what of it.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = {
            "embed.weight": torch.randn(VOCAB_SIZE, 2, generator=generator),
            "norm.weight": torch.randn(3, generator=generator),
        }
        self.batches: list[list[TokenSequence]] = []
        self.parts: list[ScoreParts] = []
        self.thread_names: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.is_scoring = threading.Event()
        self.fitting_tokens = 2**20
        self.tries: list[int] = []
        self._fitting = FittingScorer(self._score_together, release=lambda: None)
        self.fail_scoring: Exception | None = None
        self.fail_loading: Exception | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="fake",
            architecture="FakeForCausalLM",
            num_parameters=VOCAB_SIZE * 2 + 3,
            num_measured_parameters=VOCAB_SIZE * 2 + 3,
            dtype="float32",
            device="cpu",
            max_sequence_tokens=MAX_SEQUENCE_TOKENS,
            vocab_size=VOCAB_SIZE,
            tied_embeddings=True,
            layout="packed",
            norm_probes=5,
            rules={"embedding": ["embed.weight"], "vector": ["norm.weight"]},
        )

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        self.thread_names.add(threading.current_thread().name)
        self.is_scoring.set()
        assert self.gate.wait(WAIT_SECONDS)
        self.is_scoring.clear()
        if self.fail_scoring is not None:
            raise self.fail_scoring
        self.batches.append(list(sequences))
        self.parts.append(parts)
        scored = self._fitting.score(sequences)
        scores = [_with(scored.scores.get(sequence, EMPTY_SCORE), parts) for sequence in sequences]
        return BatchResult(scores, scored.too_long, scored.fitting_tokens)

    def attribute(self, sequence: TokenSequence) -> Attribution:
        """A share of each position that is its token's part of all ids; all of it is the embedding's."""
        score = self.score([sequence]).scores[0]
        total = sum(sequence.token_ids)
        return Attribution(
            num_loss_tokens=score.num_loss_tokens,
            grad_norm=score.grad_norm,
            position_shares=[token_id / total for token_id in sequence.token_ids],
            parameter_shares={"embed.weight": 1.0, "norm.weight": 0.0},
            unresolved_share=0.0,
            unresolved=["norm.weight"],
            module_labels={"embed.weight": "embedding and head", "norm.weight": "norm"},
        )

    def measure_batch_tokens(self) -> int:
        self.thread_names.add(threading.current_thread().name)
        return MEASURED_BATCH_TOKENS

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.parameters

    def aliases(self) -> dict[str, list[str]]:
        return {"embed.weight": ["head.weight"]}

    def plan_checkpoint(self, names: Iterable[str]) -> CheckpointPlan:
        return plan_of_own_names([*self.parameters, "head.weight"], names)

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        self.thread_names.add(threading.current_thread().name)
        for name, write in writes:
            write(self.parameters[name])
            if self.fail_loading is not None:
                raise self.fail_loading

    def _score_together(self, sequences: Sequence[TokenSequence]) -> list[SequenceScore]:
        self.tries.append(num_tokens(sequences))
        if self.tries[-1] > self.fitting_tokens:
            raise MemoryError
        return [self._score(sequence) for sequence in sequences]

    def _score(self, sequence: TokenSequence) -> SequenceScore:
        if sequence.num_loss_tokens == 0:
            return EMPTY_SCORE
        rows = self.parameters["embed.weight"][list(sequence.prompt_ids + sequence.completion_ids)]
        value = float(rows.sum() + self.parameters["norm.weight"].sum())
        return SequenceScore(
            num_loss_tokens=sequence.num_loss_tokens,
            grad_norm=abs(value) + 0.125,
            mean_logprob=-abs(value) - 1,
            mean_entropy=value * value,
            self_certainty=abs(value) + 2,
            mean_probability=1 / (abs(value) + 1),
            token_logprobs=[-abs(value) - 1] * sequence.num_loss_tokens,
        )


def _with(score: SequenceScore, parts: ScoreParts) -> SequenceScore:
    norm = score.grad_norm if parts.norm else nan
    return replace(score, grad_norm=norm, token_logprobs=score.token_logprobs if parts.token_logprobs else None)
