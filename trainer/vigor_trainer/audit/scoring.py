"""Scores completions by all rewards in one pass: one request to the service per chunk, and local rules for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vigor_client import Completion, CompletionScore, Group, GroupScore, PublishResult, score_in_chunks
from vigor_client.schemas.scoring import DEFAULT_COMPUTE
from vigor_trainer.config.arguments import BUILTINS, BuiltinName
from vigor_trainer.data.answers import Judged
from vigor_trainer.data.prompts import Prompt
from vigor_trainer.monitoring.completions import SCORE_FIELDS
from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.rewards.round_rewards import ScoringClient
from vigor_trainer.rewards.rules import RuleOptions, ScoredGroup, rewards_of

WITHOUT_SQRT_LENGTH = "vigor_without_sqrt_length"
"""The ablation that ranks the norms without the factor √T."""

_RULES: dict[str, tuple[BuiltinName, RuleOptions]] = {
    **{name: (name, RuleOptions()) for name in BUILTINS},
    WITHOUT_SQRT_LENGTH: ("vigor", RuleOptions(sqrt_length=False)),
}
REWARDS = tuple(_RULES)

GROUPS_AT_ONCE = 8
"""Number of questions per request, small enough that a service on a CPU scores it within its time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCompletion(EvaluatedCompletion):
    """A completion with its score and its rewards; the greedy one has neither, since it is not in a group."""

    status: str | None = None
    grad_norm: float | None = None
    scaled_grad_norm: float | None = None
    mean_logprob: float | None = None  # nats
    self_certainty: float | None = None  # nats
    p_norm: float | None = None
    sum_logprob: float | None = None  # nats
    rewards: Mapping[str, float] | None = None


def audited(
    completions: Iterable[EvaluatedCompletion], client: ScoringClient, weights: PublishResult, *, seed: int
) -> list[AuditedCompletion]:
    """Return all completions; the sampled ones have scores under exactly these weights.

    Raises:
        VigorError: the service cannot be reached, or refuses.
    """
    greedy: list[AuditedCompletion] = []
    groups: dict[int, list[EvaluatedCompletion]] = {}
    for completion in completions:
        if completion.decoding == "greedy":
            greedy.append(AuditedCompletion(**_fields(completion)))
        else:
            groups.setdefault(completion.question, []).append(completion)
    scores = score_in_chunks(
        map(_group, groups.values()), lambda chunk: _ask(client, chunk, weights), max_groups=GROUPS_AT_ONCE
    )
    scored = [
        completion
        for group, answer in zip(groups.values(), scores, strict=True)
        for completion in _of_group(group, answer.completions, seed)
    ]
    return greedy + scored


def _ask(client: ScoringClient, groups: Sequence[Group], weights: PublishResult) -> list[GroupScore]:
    return client.score(
        groups,
        weight_version=weights.weight_version,
        weight_digest=weights.weight_digest,
        wait_seconds=0.0,
        compute=DEFAULT_COMPUTE,
        reward="vigor",
        ties="average",
        truncated="score",
    ).groups


def _of_group(
    group: Sequence[EvaluatedCompletion], scores: Sequence[CompletionScore], seed: int
) -> list[AuditedCompletion]:
    judged = [Judged(each.final_answer, each.is_correct, each.is_boxed) for each in group]
    scored = ScoredGroup(scores, judged, f"{seed}/{group[0].question}")
    rewards = {name: rewards_of(reward, scored, options) for name, (reward, options) in _RULES.items()}
    return [
        AuditedCompletion(
            **_fields(completion) | {name: getattr(score, name) for name in SCORE_FIELDS},
            rewards={name: values[index] for name, values in rewards.items()},
        )
        for index, (completion, score) in enumerate(zip(group, scores, strict=True))
    ]


def _fields(completion: EvaluatedCompletion) -> dict[str, Any]:
    return {field.name: getattr(completion, field.name) for field in fields(completion)}


def _group(group: Sequence[EvaluatedCompletion]) -> Group:
    completions = [
        Completion(ids=each.completion_ids, finish_reason=each.finish_reason)
        if each.completion_ids is not None
        else Completion(text=each.completion, finish_reason=each.finish_reason)
        for each in group
    ]
    return Group.model_validate(_prompt(group[0].prompt, group[0].prompt_ids) | {"completions": completions})


def _prompt(prompt: Prompt, prompt_ids: list[int] | None) -> dict[str, Any]:
    if prompt_ids is not None:
        return {"prompt_ids": prompt_ids}
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
