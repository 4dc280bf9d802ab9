"""A group whose completions come one at a time: what came so far, and who waits for it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field

from vigor_client.schemas.scoring import ScoreResponse
from vigor_service.errors import GroupConflictError
from vigor_service.sample_groups.samples import Sample
from vigor_service.scheduling.admission import Place
from vigor_service.scheduling.score_cache import ScoreCache


@dataclass(slots=True, eq=False)
class OpenGroup:
    """One group: its samples so far, how many callers wait, and its answer, of which each takes its own part.

    ``place`` is its place in the queue, which ``leave_queue`` gives back; ``scores`` are those that were computed
    while it gathered.
    """

    first: Sample
    timer: asyncio.TimerHandle
    answer: asyncio.Future[ScoreResponse]
    place: Place
    leave_queue: ExitStack
    scores: ScoreCache
    samples: dict[int, Sample] = field(default_factory=dict)
    computing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    scoring: asyncio.Task[ScoreResponse] | None = None
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
            GroupConflictError: it cannot belong to it.
        """
        if differing := sample.differing(self.first):
            raise GroupConflictError(
                f"group {self.name!r}: sample {sample.index} has another {', '.join(differing)} than sample "
                f"{self.first.index}; nothing was taken from it"
            )
        known = self.samples.get(sample.index)
        if known is not None and not known.is_same_completion(sample):
            raise GroupConflictError(
                f"group {self.name!r}: sample {sample.index} came before, with another completion; nothing was taken"
            )
        return known is None
