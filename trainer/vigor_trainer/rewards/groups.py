"""Assembles the sampled completions of all processes into one round of whole groups, which is then scored.

Pure: no TRL, no processes, no client. The checks are the same as in `vigor_client.integrations.trl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vigor_client import Completion
from vigor_client.integrations.trl.group_slices import parts_of_slice
from vigor_client.integrations.trl.round import Round
from vigor_client.schemas.scoring import FinishReason, TruncatedRule
from vigor_trainer.data.answers import Judged
from vigor_trainer.data.prompts import Prompt
from vigor_trainer.rewards.rules import RuleOptions


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """One sampled completion, as sent between the processes of a run."""

    prompt: Prompt
    text: str
    prompt_ids: list[int]
    completion_ids: list[int]
    loss_mask: list[int] | None
    finish_reason: FinishReason
    judged: Judged


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """The settings of every score request, and of the rewards computed from its answer.

    ``seed`` is the seed of the run, so that a resumed run draws the same random rewards.
    """

    rules: RuleOptions = field(default_factory=RuleOptions)
    truncated: TruncatedRule = "score"
    wait_seconds: float = 30.0
    seed: int = 0


def whole_round(samples: Sequence[SampledCompletion], group_size: int, *, step: int) -> Round:
    """Return the round made of the samples of all processes, in order, so that all of its groups are whole.

    Raises:
        InvalidGroupError: the samples are not whole groups of one prompt each.
    """
    return Round(
        name=f"step{step}",
        group_size=group_size,
        parts=parts_of_slice(len(samples), group_size=group_size, rank=0, num_processes=1),
        prompt_ids=[sample.prompt_ids for sample in samples],
        completions=[
            Completion(ids=sample.completion_ids, mask=sample.loss_mask, finish_reason=sample.finish_reason)
            for sample in samples
        ],
    )
