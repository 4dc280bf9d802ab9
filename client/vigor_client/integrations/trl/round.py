"""One process' share of a round of completions: whole groups are scored in one request, other completions one by one.

Knows groups, samples and clients; knows no trainer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vigor_client.chunking import chunk_groups, halves, is_too_large
from vigor_client.client import AsyncVigorClient
from vigor_client.errors import PayloadTooLargeError, UnexpectedAnswerError
from vigor_client.integrations.groups import InvalidGroupError, shared_prompt
from vigor_client.integrations.trl.completions import refuse_other_tokens
from vigor_client.integrations.trl.group_slices import Part
from vigor_client.schemas.scoring import (
    Completion,
    CompletionScore,
    Group,
    SampleRequest,
    SampleResponse,
    ScoreResponse,
)

MAX_WAITING_SAMPLES = 100  # each waits on a connection of its own; httpx opens at most 100


@dataclass(frozen=True, slots=True)
class VersionedScore:
    """A completion's score, and the version of the weights that produced it."""

    weight_version: int
    score: CompletionScore


@dataclass(frozen=True, slots=True)
class Round:
    """The completions of one process with their prompts, and the parts of groups that they form.

    Raises:
        InvalidGroupError: a part mixes prompts, or more samples would wait for other processes than
            ``MAX_WAITING_SAMPLES``.
    """

    name: str
    group_size: int
    parts: Sequence[Part]
    prompt_ids: Sequence[list[int]]
    completions: Sequence[Completion]

    def __post_init__(self) -> None:
        for part in self.parts:
            shared_prompt(self.prompt_ids[part.start : part.stop], f"group {part.group}")
        num_waiting = sum(part.stop - part.start for part in self._split_parts())
        if num_waiting > MAX_WAITING_SAMPLES:
            raise InvalidGroupError(
                f"{num_waiting} completions of this process belong to groups that other processes hold parts of; at "
                f"most {MAX_WAITING_SAMPLES} can wait for them: give each process whole groups of {self.group_size}"
            )

    def groups(self) -> list[Group]:
        """Return the groups that are whole in this process."""
        return [self._group(part) for part in self.parts if self._is_whole(part)]

    def samples(self, options: Mapping[str, Any]) -> list[SampleRequest]:
        """Return the completions of the groups that are not whole here, as samples."""
        return [
            self._sample(part, position, options)
            for part in self._split_parts()
            for position in range(part.start, part.stop)
        ]

    def in_order(self, groups: Iterable[ScoreResponse], samples: Iterable[SampleResponse]) -> list[VersionedScore]:
        """Return the answers to `groups` and `samples` as one list, a score per completion.

        Raises:
            WrongAnswerError: a score is about tokens other than the sampled ones.
        """
        whole = iter([(answer.weight_version, group) for answer in groups for group in answer.groups])
        single = iter(samples)
        ordered: list[VersionedScore] = []
        for part in self.parts:
            if self._is_whole(part):
                version, group = next(whole)
                ordered += [VersionedScore(version, score) for score in group.completions]
            else:
                answers = [next(single) for _ in range(part.start, part.stop)]
                ordered += [VersionedScore(answer.weight_version, answer.completion) for answer in answers]
        self.check_tokens([scored.score for scored in ordered])
        return ordered

    def check_tokens(self, scores: Sequence[CompletionScore]) -> None:
        """Raise a WrongAnswerError if a score (one per completion) is about tokens other than the sampled ones."""
        for part in self.parts:
            held = slice(part.start, part.stop)
            refuse_other_tokens(self._name(part), self.completions[held], scores[held], first=part.first)

    def _split_parts(self) -> list[Part]:
        return [part for part in self.parts if not self._is_whole(part)]

    def _is_whole(self, part: Part) -> bool:
        return part.stop - part.start == self.group_size

    def _group(self, part: Part) -> Group:
        completions = list(self.completions[part.start : part.stop])
        return Group(id=self._name(part), prompt_ids=self.prompt_ids[part.start], completions=completions)

    def _sample(self, part: Part, position: int, options: Mapping[str, Any]) -> SampleRequest:
        return SampleRequest(
            group=self._name(part),
            group_size=self.group_size,
            index=part.first + position - part.start,
            prompt_ids=self.prompt_ids[position],
            completion=self.completions[position],
            **options,
        )

    def _name(self, part: Part) -> str:
        return f"{self.name}/{part.group}"


async def score_round(client: AsyncVigorClient, asked: Round, options: Mapping[str, Any]) -> list[VersionedScore]:
    """Return a score per completion of a round. ``options`` are those of ``VigorClient.score``.

    Raises:
        the error of the request that failed first; the other requests are cancelled.
    """
    try:
        # All at the same time, since other processes already wait for these samples.
        async with asyncio.TaskGroup() as tasks:
            whole = [tasks.create_task(_score(client, groups, options)) for groups in chunk_groups(asked.groups())]
            single = [tasks.create_task(client.score_sample(sample)) for sample in asked.samples(options)]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    answers = [answer for task in whole for answer in task.result()]
    return asked.in_order(answers, [task.result() for task in single])


async def _score(client: AsyncVigorClient, groups: list[Group], options: Mapping[str, Any]) -> list[ScoreResponse]:
    """Return the scores of whole groups, split into halves if they are too large for one request."""
    try:
        return [await client.score(groups, **options)]
    except (PayloadTooLargeError, UnexpectedAnswerError) as error:
        if len(groups) == 1 or not is_too_large(error):
            raise
    return [answer for half in halves(groups) for answer in await _score(client, half, options)]
