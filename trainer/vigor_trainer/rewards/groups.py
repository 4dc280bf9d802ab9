"""From sampled completions to the groups that are asked for, and what is checked of the answer.

Pure: no TRL, no processes, no client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vigor_client import Completion, Group, GroupScore
from vigor_client.schemas.scoring import FinishReason, RewardName, TieRule, TruncatedRule
from vigor_trainer.errors import IncompleteGroupError, WrongAnswerError


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """One sampled completion, as it travels between the processes of a run."""

    prompt_ids: list[int]
    completion_ids: list[int]
    loss_mask: list[int] | None
    finish_reason: FinishReason
    is_correct: bool | None


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is asked of the service in every request."""

    reward: RewardName = "vigor"
    ties: TieRule = "average"
    truncated: TruncatedRule = "score"
    wait_seconds: float = 30.0


def complete_groups(samples: Sequence[SampledCompletion], group_size: int) -> list[Sequence[SampledCompletion]]:
    """Cut the samples of all processes, in order, into the groups of their prompts.

    Raises:
        IncompleteGroupError: they are not whole groups of one prompt each.
    """
    groups = [samples[start : start + group_size] for start in range(0, len(samples), group_size)]
    for index, group in enumerate(groups):
        if len(group) != group_size:
            raise IncompleteGroupError(
                f"group {index} has {len(group)} of {group_size} completions: nothing was ranked"
            )
        if any(sample.prompt_ids != group[0].prompt_ids for sample in group):
            raise IncompleteGroupError(f"group {index} mixes completions of different prompts: nothing was ranked")
    return groups


def question(groups: Sequence[Sequence[SampledCompletion]], *, step: int) -> list[Group]:
    """The groups as they are asked of the service."""
    return [_group(f"step{step}/{index}", group) for index, group in enumerate(groups)]


def _group(name: str, samples: Sequence[SampledCompletion]) -> Group:
    completions = [
        Completion(ids=sample.completion_ids, mask=sample.loss_mask, finish_reason=sample.finish_reason)
        for sample in samples
    ]
    return Group(id=name, prompt_ids=samples[0].prompt_ids, completions=completions)


def validate_response(asked: Sequence[Group], answered: Sequence[GroupScore]) -> None:
    """Make sure that the service counted the tokens that were sampled, in every completion that has a norm.

    That weights, reward, groups and their sizes are those asked for, the client has made sure of.

    Raises:
        WrongAnswerError: another number of tokens; names the first completion.
    """
    for group, scored in zip(asked, answered, strict=True):
        for index, (completion, score) in enumerate(zip(group.completions, scored.completions, strict=True)):
            num_tokens = _num_loss_tokens(completion)
            if score.status == "ok" and score.num_tokens != num_tokens:
                raise WrongAnswerError(
                    f"group {group.id}, completion {index}: the service scored {score.num_tokens} tokens of the "
                    f"{num_tokens} that were sampled; no reward of this round is used"
                )


def _num_loss_tokens(completion: Completion) -> int:
    return len(completion.ids or []) if completion.mask is None else sum(completion.mask)
