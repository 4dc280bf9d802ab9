"""One request in the queue: the scores that it waits for, the scores that it has, and its result."""

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
"""Callback that receives scores of some sequences of a job, each sequence once. Called on the event loop, between two
batches."""


@dataclass(frozen=True, slots=True)
class RequestScores:
    """All scores of one request, computed with one version of the weights, and its times.

    Times are in seconds of ``perf_counter``. A request starts with its first batch, or without one when it finishes.
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
    """Sequences of a request ran out of memory even when each was scored alone.

    ``too_long`` maps these sequences to the longest length that is known to fit.
    """

    def __init__(self, too_long: Mapping[TokenSequence, int]) -> None:
        super().__init__(f"{len(too_long)} sequences do not fit into memory")
        self.too_long = too_long


@dataclass(slots=True, eq=False)
class Job:
    """The distinct sequences of one request, the parts that their scores must have, and their scores so far.

    ``own_scores`` is a cache of this request: it is searched in addition to the cache of all requests, and receives the
    computed scores. ``weights`` is set when the job's turn comes, and all of its scores come from these weights.
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
        """Whether the job was answered, refused or cancelled."""
        return self.answer.done()

    @property
    def is_complete(self) -> bool:
        """Whether all scores are present."""
        return len(self.scores) == len(self.sequences)

    def take(self, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Add the scores that a batch computed."""
        self.own_scores.keep(self.weights.digest, scores, self.parts)
        self.scores |= scores
        self.notify(scores)

    def notify(self, scores: Mapping[TokenSequence, SequenceScore]) -> None:
        """Call ``on_scores`` with new scores."""
        if self.on_scores is not None:
            self.on_scores(scores)

    def finish(self) -> RequestScores:
        """Set all scores as the job's result, and return them."""
        finished_at = perf_counter()
        started_at = finished_at if self.started_at is None else self.started_at
        scored = RequestScores(self.scores, self.weights, self.submitted_at, started_at, finished_at)
        self.answer.set_result(scored)
        return scored

    def fail(self, error: Exception) -> None:
        """End the job with an error, unless it is over."""
        if not self.is_over:
            self.answer.set_exception(error)


Batch = dict[TokenSequence, list[Job]]
"""The sequences of a batch, each with the jobs that wait for it."""


def jobs_of(batch: Batch) -> set[Job]:
    """Return the jobs that wait for a part of the batch. All of them have the same weights."""
    return {job for jobs in batch.values() for job in jobs}


def scores_of_jobs(
    batch: Batch, scores: Mapping[TokenSequence, SequenceScore]
) -> Mapping[Job, Mapping[TokenSequence, SequenceScore]]:
    """Return for each job that waited for a part of the batch the scores that it gets."""
    of_jobs: defaultdict[Job, dict[TokenSequence, SequenceScore]] = defaultdict(dict)
    for sequence, jobs in batch.items():
        for job in jobs:
            of_jobs[job][sequence] = scores[sequence]
    return of_jobs
