"""The completions in a page, with their text: all of a small run, evenly chosen whole groups of a large one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vigor_trainer.monitoring.completions import CompletionRecord
from vigor_trainer.reports.runs import Run, group_ranks, groups_of

MAX_CHARACTERS = 30_000_000
"""Maximum number of characters of the completions in one page, which a browser then opens within seconds."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Columns with one entry per completion, group after group.

    ``groups`` has, for each group, the index of its first completion, the prompt's index in ``prompts``, and the step.
    """

    groups: list[tuple[int, int, int]]
    prompts: list[str]
    columns: Mapping[str, list[Any]]
    rewards: Mapping[str, list[float | None]]


def share_shown(runs: Sequence[Run], *, max_completions: int, max_characters: int = MAX_CHARACTERS) -> float:
    """Return the share of the groups that fit into a page."""
    samples = [sample for run in runs for group in run.groups for sample in group.samples]
    num_characters = sum(sample.num_characters for sample in samples)
    return min(1.0, max_completions / len(samples), max_characters / max(1, num_characters))


def listing_of(run: Run, share: float) -> Listing:
    """Return this share of a run's groups, evenly chosen, with their text, which is read from the files again."""
    names = ("text", "rank", "norm", "tokens", "ended", "correct", "answer")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    rewards: dict[str, list[float | None]] = {name: [] for name in run.rewards}
    groups: list[tuple[int, int, int]] = []
    prompts: dict[str, int] = {}
    for number, group in enumerate(groups_of(run.directory, run.num_recorded)):
        if int((number + 1) * share) == int(number * share):
            continue
        prompt = prompt_text(group[0].prompt)
        groups.append((len(columns["text"]), prompts.setdefault(prompt, len(prompts)), group[0].step))
        for record, rank in zip(group, group_ranks(group), strict=True):
            for name, value in zip(names, _entries(record, rank), strict=True):
                columns[name].append(value)
            for name, values in rewards.items():
                values.append(record.rewards.get(name))
    return Listing(groups, list(prompts), columns, rewards)


def _entries(record: CompletionRecord, rank: float) -> tuple[object, ...]:
    return (
        record.completion,
        rank,
        record.scaled_grad_norm,
        record.num_tokens,
        int(record.finish_reason == "stop"),
        None if record.is_correct is None else int(record.is_correct),
        record.final_answer,
    )


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a prompt as one text: the messages in order, each under its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {_content(message.get('content'))}" for message in prompt)


def _content(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
