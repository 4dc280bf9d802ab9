"""Completions whose norms, and so the AUC of `vigor`, are planted: a client that scores by what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from tests.trainer.evaluation.examples import evaluated
from vigor_client import CompletionScore, Group, GroupScore, PublishResult, ScoreResponse, Timing, Usage, ranks
from vigor_trainer.audit.metrics import AuditMetrics, audit_metrics
from vigor_trainer.audit.scoring import audited
from vigor_trainer.monitoring.evaluations import EvaluatedCompletion

WEIGHTS = PublishResult(7, f"xxh3-128:{7:032x}", sent_bytes=0, num_changed_tensors=0)


class PlantedService:
    """Scores a completion by its first id, as its scaled norm; its length is the number of its ids."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def score(self, groups: Sequence[Group], **asked: Any) -> ScoreResponse:  # noqa: ANN401 - as VigorClient.score
        self.requests.append(asked)
        return ScoreResponse(
            model="planted",
            weight_version=7,
            weight_digest=WEIGHTS.weight_digest,
            reward="vigor",
            groups=[_scores(group) for group in groups],
            usage=Usage(prompt_tokens=0, completion_tokens=0, deduplicated_completions=0),
            timing=Timing(queue_seconds=0.0, compute_seconds=0.0),
        )


def _scores(group: Group) -> GroupScore:
    norms = [float((each.ids or [0])[0]) for each in group.completions]
    lengths = [len(each.ids or []) for each in group.completions]
    return GroupScore(
        completions=[
            CompletionScore(
                status="ok",
                num_tokens=length,
                grad_norm=norm / sqrt(length),
                scaled_grad_norm=norm,
                rank=rank,
                reward=0.0,
                mean_logprob=-norm,
                mean_entropy=norm,
                self_certainty=-norm,
                p_norm=1 / norm,
                sum_logprob=-norm * length,
            )
            for norm, length, rank in zip(norms, lengths, ranks(norms), strict=True)
        ]
    )


def group(question: int, norms: Sequence[int], correct: Sequence[bool]) -> list[EvaluatedCompletion]:
    """Sampled completions of one question with these norms."""
    return [
        evaluated(
            question,
            index,
            completion_ids=[norm] * (index + 1),
            completion=f"{norm} {index}",
            is_correct=right,
            final_answer="1" if right else str(index + 2),
        )
        for index, (norm, right) in enumerate(zip(norms, correct, strict=True))
    ]


def planted_metrics(completions: Sequence[EvaluatedCompletion]) -> AuditMetrics:
    """The numbers of an audit of these completions."""
    return audit_metrics(audited(completions, PlantedService(), WEIGHTS, seed=0))
