"""A group whose completions arrive one at a time: the samples so far, and the number of callers that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from vigor_client.schemas.scoring import GroupLine, LastLine
from vigor_service.errors import GroupConflictError
from vigor_service.sample_groups.samples import Sample
from vigor_service.scheduling.admission import Place
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.encoded import EncodedGroup

Answer = tuple[GroupLine, LastLine]
"""The answer to a complete group. Each caller gets the part of its own sample."""


@dataclass(slots=True, eq=False)
class OpenGroup:
    """One group: its samples so far, the number of callers that wait, and its answer.

    ``place`` is its place in the queue, which ``leave_queue`` gives back. ``scores`` has the scores that were computed
    before the group was complete.
    """

    first: Sample
    timer: asyncio.TimerHandle
    answer: asyncio.Future[Answer]
    place: Place
    leave_queue: ExitStack
    scores: ScoreCache
    samples: dict[int, Sample] = field(default_factory=dict[int, Sample])
    computing: dict[int, asyncio.Task[None]] = field(default_factory=dict[int, asyncio.Task[None]])
    scoring: asyncio.Task[Answer] | None = None
    num_bytes: int = 0
    num_waiting: int = 0

    @property
    def name(self) -> str:
        return self.first.group

    @property
    def is_whole(self) -> bool:
        return len(self.samples) == self.first.group_size

    def lacks(self, sample: Sample) -> bool:
        """Return whether the sample is new to the group.

        Raises:
            GroupConflictError: the sample contradicts those of the group.
        """
        if differing := sample.differing(self.first):
            raise GroupConflictError(
                f"group {self.name!r}: sample {sample.index} differs in {', '.join(differing)} from sample "
                f"{self.first.index}; it was not added"
            )
        known = self.samples.get(sample.index)
        if known is not None and not known.is_same_completion(sample):
            raise GroupConflictError(
                f"group {self.name!r}: sample {sample.index} was sent before with another completion; it was not added"
            )
        return known is None

    def encoded(self) -> EncodedGroup:
        """Return the samples as a group of a score request, in the order of their indices."""
        return encoded_group(self.samples[index] for index in sorted(self.samples))


def encoded_group(samples: Iterable[Sample]) -> EncodedGroup:
    """Return samples of one name as a group of a score request."""
    ordered = list(samples)
    sequences, is_truncated = zip(*((sample.sequence, sample.is_truncated) for sample in ordered), strict=True)
    return EncodedGroup(ordered[0].group, sequences, is_truncated)
