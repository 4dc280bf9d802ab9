"""One request on its way through the queue: which scores it waits for, which it has, and how it ends."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from time import perf_counter

from vigor_service.engine.sequences import ScoreParts, SequenceScore, TokenSequence
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.weights.version import WeightRequirement, Weights

OnScores = Callable[[Mapping[TokenSequence, SequenceScore]], None]
"""Takes the scores of some sequences of a job, those of each only once, on the loop and between two batches."""


@dataclass(frozen=True, slots=True)
class RequestScores:
    """All scores of one request, taken under one version of the weights, and where its time went.

    Times are those of ``perf_counter``, in seconds. It started with its first batch; with none, when it finished.
    """

    scores: dict[TokenSequence, SequenceScore]
    weights: Weights
    submitted_at: float
    started_at: float
    finished_at: float

    @property
    def queue_seconds(self) -> float:
        """Seconds until its first batch began."""
        return self.started_at - self.submitted_at

    @property
    def compute_seconds(self) -> float:
        """Seconds from its first batch to its last score."""
        return self.finished_at - self.started_at


class DoesNotFitError(Exception):
    """Sequences of a request ran out of memory though they were scored alone.

    ``too_long`` has them, each with the longest length that is known to fit.
    """

    def __init__(self, too_long: Mapping[TokenSequence, int]) -> None:
        super().__init__(f"{len(too_long)} sequences do not fit into memory")
        self.too_long = too_long


@dataclass(slots=True, eq=False)
class Job:
    """The distinct sequences of one request, the parts that their scores must have, and their scores so far.

    ``own_scores`` are looked up beside the cache of all requests and get what is computed. ``weights`` are set when its
    turn comes: all of its scores are theirs.
    """

    sequences: Collection[TokenSequence]
    parts: ScoreParts
    requirement: WeightRequirement
    own_scores: ScoreCache
    on_scores: OnScores | None
    answer: asyncio.Future[RequestScores]
    submitted_at: float = field(default_factory=perf_counter)
    started_at: float | None = None
    scores: dict[TokenSequence, SequenceScore] = field(default_factory=dict[TokenSequence, SequenceScore])
    weights: Weights = field(init=False)
    num_lost_engines: int = 0

    @property
    def is_over(self) -> bool:
        """Whether it was answered, refused or taken back."""
        return self.answer.done()

    @property
    def is_complete(self) -> bool:
        """Whether no score is missing."""
        return len(self.scores) == len(self.sequences)

    def take(self, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Take the scores that a batch brought."""
        self.own_scores.keep(self.weights.digest, scores, self.parts)
        self.scores |= scores
        self.notify(scores)

    def notify(self, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Call ``on_scores`` with new scores."""
        if self.on_scores is not None:
            self.on_scores(scores)

    def finish(self) -> RequestScores:
        """Answer with all scores, and return them."""
        finished_at = perf_counter()
        started_at = finished_at if self.started_at is None else self.started_at
        scored = RequestScores(self.scores, self.weights, self.submitted_at, started_at, finished_at)
        self.answer.set_result(scored)
        return scored

    def fail(self, error: Exception) -> None:
        """End with an error, unless it is over."""
        if not self.is_over:
            self.answer.set_exception(error)


Batch = dict[TokenSequence, list[Job]]
"""The sequences of a batch, each with the jobs that wait for it."""


def jobs_of(batch: Batch) -> set[Job]:
    """Return the jobs that wait for a part of the batch: all of them under the same weights."""
    return {job for jobs in batch.values() for job in jobs}


def scores_of_jobs(
    batch: Batch, scores: Mapping[TokenSequence, SequenceScore]
) -> Mapping[Job, Mapping[TokenSequence, SequenceScore]]:
    """Return what the batch brought to each job that waited for a part of it."""
    of_jobs: defaultdict[Job, dict[TokenSequence, SequenceScore]] = defaultdict(dict)
    for sequence, jobs in batch.items():
        for job in jobs:
            of_jobs[job][sequence] = scores[sequence]
    return of_jobs
