"""From score requests to batches on the compute thread: across requests, with weight swaps as barriers.

All of its state lives on the event loop; the compute thread only ever runs one batch. It knows nothing about
HTTP, groups, ranks, or what is done behind a barrier.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_service.engine.sequences import SequenceScore, TokenSequence
from vigor_service.errors import EngineFailedError, ServiceError
from vigor_service.observability.metrics import Metrics
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.fair_queue import BatchBudget, Pool
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.version import WeightRequirement, Weights

if TYPE_CHECKING:
    from vigor_service.engine.interface import BatchResult

BEGUN_AT_ONCE = 1024
"""Sequences of one request that are looked up and queued before the loop serves others again."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestScores:
    """All scores of one request, taken under one version of the weights, and where its time went."""

    scores: dict[TokenSequence, SequenceScore]
    weights: Weights
    queue_seconds: float
    compute_seconds: float


@dataclass(slots=True, eq=False)
class _Job:
    """One request on its way."""

    sequences: Collection[TokenSequence]
    requirement: WeightRequirement
    answer: asyncio.Future[RequestScores]
    own_scores: ScoreCache
    submitted_at: float = field(default_factory=perf_counter)
    started_at: float | None = None
    scores: dict[TokenSequence, SequenceScore] = field(default_factory=dict)
    on_scores: OnScores | None = None


@dataclass(slots=True)
class _Barrier:
    """Somebody who wants the compute thread alone: is told when it is granted, tells when it is released."""

    granted: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Epoch:
    """Jobs between two barriers: all of them see the same weights."""

    newcomers: list[_Job] = field(default_factory=list)
    pool: Pool[_Job] = field(default_factory=Pool)
    barrier: _Barrier | None = None


OnScores = Callable[[Mapping[TokenSequence, SequenceScore]], None]
"""Is told the scores of some sequences of a job, those of each only once, on the loop and between two batches."""


class DoesNotFitError(Exception):
    """Sequences of a request ran out of memory though they were scored alone.

    ``too_long`` has them, each with the longest length that is known to fit.
    """

    def __init__(self, too_long: Mapping[TokenSequence, int]) -> None:
        super().__init__(f"{len(too_long)} sequences do not fit into memory")
        self.too_long = too_long


_NO_SCORES = ScoreCache(0)
_Batch = dict[TokenSequence, list[_Job]]


class Scheduler:
    """The queue in front of the compute thread.

    ``score_batch`` runs on the compute thread. ``weights_for`` returns the weights that serve now, or raises why
    they will not do for a requirement: it is asked when a job's turn has come.
    """

    def __init__(
        self,
        score_batch: Callable[[Sequence[TokenSequence]], BatchResult],
        *,
        compute: WorkerThread,
        weights_for: Callable[[WeightRequirement], Weights],
        admission: Admission,
        cache: ScoreCache,
        max_batch_tokens: int,
        metrics: Metrics,
    ) -> None:
        self._score_batch = score_batch
        self._compute = compute
        self._weights_for = weights_for
        self._admission = admission
        self._cache = cache
        self._budget = BatchBudget(max_batch_tokens)
        self._metrics = metrics
        self._metrics.max_batch_tokens.set(max_batch_tokens)
        self._epochs = deque([_Epoch()])
        self._has_work = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take batches from the queue."""
        self._runner = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Take no more batches."""
        if self._runner is not None:
            self._runner.cancel()

    @property
    def is_alive(self) -> bool:
        """Whether batches are taken from the queue."""
        return self._runner is not None and not self._runner.done()

    @property
    def max_batch_tokens(self) -> int:
        """Tokens that a batch may have: what was given, or less after memory ran out."""
        return self._budget.max_tokens

    async def score(
        self,
        sequences: Collection[TokenSequence],
        requirement: WeightRequirement,
        *,
        on_scores: OnScores | None = None,
        own_scores: ScoreCache | None = None,
    ) -> RequestScores:
        """Score distinct sequences under one version of the weights. Cancelling takes its work out of the queue.

        ``on_scores`` is called when its turn has come, with the scores that are there already, and after each batch
        with those that it brought. Scores that are in ``own_scores`` are not computed again, and those that are
        computed are kept there, whatever the cache of all forgets.

        Raises:
            EngineFailedError: the engine raised on a batch that held a part of it.
            DoesNotFitError: sequences of it are too long for the memory.
            ServiceError: the weights were others, or poisoned, when its turn came.
        """
        answer = asyncio.get_running_loop().create_future()
        own_scores = _NO_SCORES if own_scores is None else own_scores
        job = _Job(sequences, requirement, answer, own_scores, on_scores=on_scores)
        self._epochs[-1].newcomers.append(job)
        self._metrics.waiting_requests.inc()
        self._has_work.set()
        try:
            return await job.answer
        finally:
            self._withdraw(job)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Have the compute thread alone: after all jobs submitted before, ahead of all submitted later."""
        barrier = _Barrier()
        self._epochs[-1].barrier = barrier
        self._epochs.append(_Epoch())
        self._has_work.set()
        try:
            await barrier.granted.wait()
            yield
        finally:
            barrier.released.set()

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            epoch = self._epochs[0]
            await self._begin_newcomers(epoch)
            if epoch.pool:
                await self._run_batch(epoch.pool)
            elif epoch.newcomers:
                continue
            elif epoch.barrier is not None:
                await self._run_barrier(epoch.barrier)
            else:
                self._has_work.clear()

    async def _run_barrier(self, barrier: _Barrier) -> None:
        barrier.granted.set()
        await barrier.released.wait()
        self._epochs.popleft()

    async def _begin_newcomers(self, epoch: _Epoch) -> None:
        newcomers, epoch.newcomers = epoch.newcomers, []  # those that come meanwhile are begun after the next batch
        for job in newcomers:
            if not job.answer.done():
                await self._begin(job, epoch.pool)

    async def _begin(self, job: _Job, pool: Pool[_Job]) -> None:
        try:
            weights = self._weights_for(job.requirement)
        except ServiceError as error:
            job.answer.set_exception(error)
            return
        await self._look_up_and_queue(job, pool, weights)
        if job.answer.done():
            return
        self._metrics.cached_scores.inc(len(job.scores))
        if job.on_scores is not None:
            job.on_scores(job.scores)
        if len(job.scores) == len(job.sequences):
            self._finish(job, weights)

    async def _look_up_and_queue(self, job: _Job, pool: Pool[_Job], weights: Weights) -> None:
        """Find the scores that are known and queue the other sequences, in slices: the loop serves others in between.

        It ends early when the job is taken back. No batch runs meanwhile.
        """
        sequences = list(job.sequences)
        for first in range(0, len(sequences), BEGUN_AT_ONCE):
            if first:
                await asyncio.sleep(0)
            if job.answer.done():
                pool.remove(job)
                return
            part = sequences[first : first + BEGUN_AT_ONCE]
            known = job.own_scores.find(weights.digest, part) | self._cache.find(weights.digest, part)
            job.scores |= known
            if len(known) < len(part):
                pool.add(job, [sequence for sequence in part if sequence not in known])

    async def _run_batch(self, pool: Pool[_Job]) -> None:
        weights = self._weights_for(WeightRequirement())  # no barrier is passed while this batch runs
        batch = pool.take_batch(self._budget.max_tokens)
        started_at = perf_counter()
        for job in _jobs_of(batch):
            self._note_start(job, started_at)
        scoring = asyncio.ensure_future(self._compute.run(self._score_batch, list(batch)))
        await asyncio.wait([scoring])
        if (error := scoring.exception()) is not None:
            self._fail(batch, pool, error)
        else:
            self._measure(batch, perf_counter() - started_at)
            self._learn(scoring.result())
            self._refuse(batch, pool, scoring.result().too_long)
            self._deliver(batch, scoring.result(), weights)

    def _note_start(self, job: _Job, started_at: float) -> None:
        if job.started_at is None:
            job.started_at = started_at
            self._metrics.waiting_requests.dec()
            self._metrics.running_requests.inc()

    def _learn(self, result: BatchResult) -> None:
        if result.fitting_tokens is not None:
            self._budget.lower(result.fitting_tokens)
            self._metrics.max_batch_tokens.set(self._budget.max_tokens)

    def _refuse(self, batch: _Batch, pool: Pool[_Job], too_long: Mapping[TokenSequence, int]) -> None:
        """Fail the jobs that hold a sequence that did not fit, and no others."""
        for job in {job for sequence in too_long for job in batch[sequence]}:
            pool.remove(job)
            own = {sequence: length for sequence, length in too_long.items() if job in batch[sequence]}
            if not job.answer.done():
                job.answer.set_exception(DoesNotFitError(own))

    def _fail(self, batch: _Batch, pool: Pool[_Job], error: BaseException) -> None:
        _logger.error("batch_failed", exc_info=error, extra={"sequences": len(batch)})
        for job in _jobs_of(batch):
            pool.remove(job)
            if not job.answer.done():
                job.answer.set_exception(EngineFailedError(f"the engine raised {type(error).__name__} on this request"))

    def _deliver(self, batch: _Batch, result: BatchResult, weights: Weights) -> None:
        scores = dict(zip(batch, result.scores, strict=True))
        self._cache.keep(weights.digest, {item: scores[item] for item in batch if item not in result.too_long})
        for job, job_scores in _scores_of_jobs(batch, scores).items():
            if job.answer.done():  # it was refused, or taken back
                continue
            job.own_scores.keep(weights.digest, job_scores)
            job.scores |= job_scores
            if job.on_scores is not None:
                job.on_scores(job_scores)
            if len(job.scores) == len(job.sequences):
                self._finish(job, weights)

    def _finish(self, job: _Job, weights: Weights) -> None:
        finished_at = perf_counter()
        started_at = job.started_at or finished_at
        scored = RequestScores(
            scores=job.scores,
            weights=weights,
            queue_seconds=started_at - job.submitted_at,
            compute_seconds=finished_at - started_at,
        )
        self._metrics.queue_seconds.observe(scored.queue_seconds)
        self._metrics.compute_seconds.observe(scored.compute_seconds)
        job.answer.set_result(scored)

    def _measure(self, batch: Collection[TokenSequence], seconds: float) -> None:
        num_tokens = sum(sequence.num_tokens for sequence in batch)
        self._admission.observe_batch(num_tokens, seconds)
        self._metrics.batch_sequences.observe(len(batch))
        self._metrics.batch_tokens.observe(num_tokens)

    def _withdraw(self, job: _Job) -> None:
        (self._metrics.waiting_requests if job.started_at is None else self._metrics.running_requests).dec()
        for epoch in self._epochs:
            epoch.pool.remove(job)
            if job in epoch.newcomers:
                epoch.newcomers.remove(job)


def _scores_of_jobs(
    batch: _Batch, scores: Mapping[TokenSequence, SequenceScore]
) -> Mapping[_Job, dict[TokenSequence, SequenceScore]]:
    """What the batch brought to each job that waited for some of it."""
    of_jobs: defaultdict[_Job, dict[TokenSequence, SequenceScore]] = defaultdict(dict)
    for sequence, jobs in batch.items():
        for job in jobs:
            of_jobs[job][sequence] = scores[sequence]
    return of_jobs


def _jobs_of(batch: _Batch) -> set[_Job]:
    return {job for jobs in batch.values() for job in jobs}
