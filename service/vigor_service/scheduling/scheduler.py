"""Forms batches across score requests and runs them on the engines, with weight swaps as barriers.

All of its state lives on the event loop. Each engine computes one batch at a time, and the next batch is formed shortly
before that one ends. It does not know HTTP, groups, ranks, or what is done at a barrier.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence
from vigor_service.errors import EngineFailedError, ServiceError
from vigor_service.observability.metrics import Metrics
from vigor_service.observability.request_record import Computation, current_record
from vigor_service.scheduling.admission import Admission
from vigor_service.scheduling.engine_pool import EngineLostError, EnginePool
from vigor_service.scheduling.fair_queue import BatchBudget, Pool
from vigor_service.scheduling.jobs import Batch, DoesNotFitError, Job, OnScores, RequestScores, jobs_of, scores_of_jobs
from vigor_service.scheduling.running_batches import RunningBatch, RunningBatches
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.weights.current import CurrentWeights
from vigor_service.weights.version import WeightRequirement

if TYPE_CHECKING:
    from vigor_service.engine.interface import BatchResult

BEGUN_AT_ONCE = 1024
"""Number of sequences of one request that are looked up and queued before the event loop runs other tasks."""

MAX_LOST_ENGINES = 2
"""Number of engines that may end while computing a request before the request fails."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Barrier:
    """A caller that needs all engines for itself. The scheduler sets ``granted``, and the caller sets ``released``."""

    granted: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Epoch:
    """The jobs between two barriers. All of them are computed with the same weights."""

    newcomers: list[Job] = field(default_factory=list[Job])
    pools: dict[ScoreParts, Pool[Job]] = field(default_factory=dict[ScoreParts, Pool[Job]])
    barrier: _Barrier | None = None

    def pool_of(self, job: Job) -> Pool[Job]:
        """Return the pool for the job's sequences: all scores of one batch must have the same parts."""
        return self.pools.setdefault(job.parts, Pool())

    @property
    def is_empty(self) -> bool:
        """Whether no job of this epoch is waiting."""
        return not self.newcomers and not any(self.pools.values())

    def next_pool(self) -> tuple[ScoreParts, Pool[Job]] | None:
        """Return the next pool that is not empty. Pools take turns, and empty pools are dropped."""
        self.pools = {parts: pool for parts, pool in self.pools.items() if pool}
        if not self.pools:
            return None
        parts = next(iter(self.pools))
        pool = self.pools[parts] = self.pools.pop(parts)
        return parts, pool


_NO_SCORES = ScoreCache(0)


class Scheduler:
    """The queue in front of the engines.

    A job waits for its weights before it enters the queue, and they are checked once, when its turn comes. One check is
    enough: weights change only at a barrier, so they stay the same until all jobs before the next barrier are answered.
    """

    def __init__(
        self,
        engines: EnginePool,
        *,
        current_weights: CurrentWeights,
        admission: Admission,
        cache: ScoreCache,
        max_batch_tokens: int,
        metrics: Metrics,
    ) -> None:
        self._engines = engines
        self._current_weights = current_weights
        self._admission = admission
        self._cache = cache
        self._budget = BatchBudget(max_batch_tokens)
        self._metrics = metrics
        self._metrics.max_batch_tokens.set(max_batch_tokens)
        self._epochs = deque([_Epoch()])
        self._computed: dict[tuple[ScoreParts, TokenSequence], RunningBatch] = {}  # on an engine, or ahead
        self._has_work = asyncio.Event()
        self._running = RunningBatches(
            engines, admission.expected_seconds, on_begin=self._note_begin, on_ending=self._has_work.set
        )
        engines.on_change = self._has_work.set
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to form batches from the queue."""
        self._runner = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Form no more batches."""
        if self._runner is not None:
            self._runner.cancel()

    @property
    def is_alive(self) -> bool:
        """Whether batches are being formed from the queue."""
        return self._runner is not None and not self._runner.done()

    @property
    def max_batch_tokens(self) -> int:
        """Maximum number of tokens of a batch: the configured number, or less after memory ran out."""
        return self._budget.max_tokens

    async def score(
        self,
        sequences: Collection[TokenSequence],
        requirement: WeightRequirement,
        *,
        parts: ScoreParts = NORM_AND_SIGNALS,
        wait_seconds: float = 0.0,
        on_scores: OnScores | None = None,
        own_scores: ScoreCache | None = None,
    ) -> RequestScores:
        """Score distinct sequences under one version of the weights. Cancelling removes the work from the queue.

        If the required weights are not served, the call waits up to ``wait_seconds`` for them. ``on_scores`` is called
        when the request's turn has come, with the scores that are already known, and after each batch with the scores
        of that batch. Scores in ``own_scores`` are not computed again. Computed scores are kept there, even after the
        cache of all requests has dropped them.

        Raises:
            EngineFailedError: the engine raised on a batch with a part of the request, or too many engines were lost.
            DoesNotFitError: sequences of the request do not fit into memory.
            ServiceError: the required weights were not served in time, or other or poisoned weights were served when
                the request's turn came.
        """
        await self._current_weights.wait_for(requirement, wait_seconds=wait_seconds)
        record = current_record()
        computation = record.computation = Computation()
        notify = computation.watching(on_scores) if record.is_traced else on_scores
        answer: asyncio.Future[RequestScores] = asyncio.get_running_loop().create_future()
        scored = await self._submit(
            Job(sequences, parts, requirement, _NO_SCORES if own_scores is None else own_scores, notify, answer)
        )
        computation.started, computation.finished = scored.started_at, scored.finished_at
        record.weight_version = scored.weights.version
        return scored

    async def _submit(self, job: Job) -> RequestScores:
        self._epochs[-1].newcomers.append(job)
        self._metrics.waiting_requests.inc()
        self._has_work.set()
        try:
            return await job.answer
        finally:
            self._withdraw(job)

    @asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[None]:
        """Reserve all engines in the context: after all jobs submitted before it, before all jobs submitted later."""
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
        async with asyncio.TaskGroup() as batches:
            while True:
                self._has_work.clear()
                await self._advance(batches)
                await self._has_work.wait()

    async def _advance(self, batches: asyncio.TaskGroup) -> None:
        """Begin new jobs, hand batches to the engines, and run the epoch's barrier once its last batch has ended."""
        epoch = self._epochs[0]
        await self._begin_newcomers(epoch)
        while (num_wanted := self._running.num_wanted) > 0:
            turn = epoch.next_pool()
            if turn is None:
                break
            self._start_batch(batches, *turn, num_wanted)
        if epoch.barrier is not None and epoch.is_empty and not self._running:
            await self._run_barrier(epoch.barrier)

    async def _run_barrier(self, barrier: _Barrier) -> None:
        barrier.granted.set()
        await barrier.released.wait()
        self._epochs.popleft()
        self._has_work.set()

    async def _begin_newcomers(self, epoch: _Epoch) -> None:
        while epoch.newcomers:
            job = epoch.newcomers.pop(0)
            if not job.is_over:
                await self._begin(job, epoch.pool_of(job))

    async def _begin(self, job: Job, pool: Pool[Job]) -> None:
        try:
            job.weights = self._current_weights.require(job.requirement)
        except ServiceError as error:
            job.fail(error)
            return
        on_engines = await self._look_up_and_queue(job, pool)
        if job.is_over:
            return
        self._metrics.cached_scores.inc(len(job.scores))
        self._join_batches(job, pool, on_engines)
        if job.is_complete:
            job.notify(job.scores)
            self._finish(job)

    async def _look_up_and_queue(self, job: Job, pool: Pool[Job]) -> list[TokenSequence]:
        """Add known scores to the job, queue the other sequences, and return those that are already on an engine.

        The work is done in slices, so that the event loop can run other tasks in between. It ends early if the job is
        cancelled.
        """
        sequences, digest, on_engines = list(job.sequences), job.weights.digest, list[TokenSequence]()
        for first in range(0, len(sequences), BEGUN_AT_ONCE):
            if first:
                await asyncio.sleep(0)
            if job.is_over:
                pool.remove(job)
                return []
            part = sequences[first : first + BEGUN_AT_ONCE]
            known = job.own_scores.find(digest, part, job.parts) | self._cache.find(digest, part, job.parts)
            job.scores |= known
            missing = [sequence for sequence in part if sequence not in known]
            on_engines += [sequence for sequence in missing if (job.parts, sequence) in self._computed]
            pool.add(job, [sequence for sequence in missing if (job.parts, sequence) not in self._computed])
        return on_engines

    def _join_batches(self, job: Job, pool: Pool[Job], sequences: Iterable[TokenSequence]) -> None:
        """Let a job wait for sequences that are already on an engine. Those that have ended meanwhile are queued."""
        for sequence in sequences:
            if (running := self._computed.get((job.parts, sequence))) is None:
                pool.add(job, [sequence])
                continue
            running.batch[sequence].append(job)
            if running.began_at is not None:
                self._note_start(job, perf_counter())

    def _start_batch(self, batches: asyncio.TaskGroup, parts: ScoreParts, pool: Pool[Job], num_wanted: int) -> None:
        batch = pool.take_batch(self._budget.max_tokens, num_shares=num_wanted)
        running = RunningBatch(batch, parts, asyncio.ensure_future(self._engines.score(list(batch), parts)))
        self._computed |= {(parts, sequence): running for sequence in batch}
        self._running.add(running)
        batches.create_task(self._run_batch(running))

    async def _run_batch(self, running: RunningBatch) -> None:
        batch, parts, scoring = running.batch, running.parts, running.scoring
        await asyncio.wait([scoring])
        seconds = self._running.end(running)
        self._has_work.set()
        if running.is_dropped:
            return
        self._forget_computed(running)
        if isinstance(error := scoring.exception(), EngineLostError):
            self._queue_again(batch, error)
        elif error is not None:
            self._fail(batch, error)
        else:
            self._measure(batch, running.num_tokens, seconds)
            self._learn(scoring.result())
            self._refuse(batch, scoring.result().too_long)
            self._deliver(batch, parts, scoring.result())

    def _forget_computed(self, running: RunningBatch) -> None:
        for sequence in running.batch:
            del self._computed[running.parts, sequence]

    def _drop_abandoned(self) -> None:
        """Cancel each batch ahead whose jobs are all over."""
        for running in self._running.ahead:
            if all(job.is_over for job in jobs_of(running.batch)):
                running.is_dropped = True
                self._forget_computed(running)
                running.scoring.cancel()

    def _note_begin(self, running: RunningBatch) -> None:
        for job in jobs_of(running.batch):
            self._note_start(job, perf_counter())

    def _note_start(self, job: Job, started_at: float) -> None:
        """Record that the job's turn has come, and pass it the scores that are already known."""
        if job.started_at is None and not job.is_over:
            job.started_at = started_at
            self._metrics.waiting_requests.dec()
            self._metrics.running_requests.inc()
            job.notify(job.scores)

    def _learn(self, result: BatchResult) -> None:
        if result.fitting_tokens is not None:
            self._budget.lower(result.fitting_tokens)
            self._metrics.max_batch_tokens.set(self._budget.max_tokens)

    def _refuse(self, batch: Batch, too_long: Mapping[TokenSequence, int]) -> None:
        """Fail the jobs that hold a sequence that did not fit, and no others."""
        for job in {job for sequence in too_long for job in batch[sequence]}:
            own = {sequence: length for sequence, length in too_long.items() if job in batch[sequence]}
            self._fail_job(job, DoesNotFitError(own))

    def _fail(self, batch: Batch, error: BaseException) -> None:
        _logger.error("batch_failed", exc_info=error, extra={"sequences": len(batch)})
        for job in jobs_of(batch):
            self._fail_job(job, EngineFailedError(f"the engine raised {type(error).__name__} on this request"))

    def _queue_again(self, batch: Batch, error: EngineLostError) -> None:
        """Queue the work of a lost engine again. A job that has lost too many engines fails, as it may be the cause."""
        _logger.error("engine_lost", extra={"reason": str(error), "sequences": len(batch)})
        for job in jobs_of(batch):
            job.num_lost_engines += 1
            if job.num_lost_engines > MAX_LOST_ENGINES:
                self._fail_job(
                    job,
                    EngineFailedError(
                        f"{job.num_lost_engines} engines ended while computing this request, so it is not tried again"
                    ),
                )
            elif not job.is_over:
                own = [sequence for sequence, owners in batch.items() if job in owners]
                self._epochs[0].pool_of(job).add(job, own)

    def _fail_job(self, job: Job, error: Exception) -> None:
        self._epochs[0].pool_of(job).remove(job)
        job.fail(error)

    def _deliver(self, batch: Batch, parts: ScoreParts, result: BatchResult) -> None:
        scores = dict(zip(batch, result.scores, strict=True))
        weights = next(iter(jobs_of(batch))).weights  # the same for all jobs before a barrier
        self._cache.keep(weights.digest, {item: scores[item] for item in batch if item not in result.too_long}, parts)
        for job, job_scores in scores_of_jobs(batch, scores).items():
            if not job.is_over:
                job.take(job_scores)
                if job.is_complete:
                    self._finish(job)

    def _finish(self, job: Job) -> None:
        scored = job.finish()
        self._metrics.queue_seconds.observe(scored.queue_seconds)
        self._metrics.compute_seconds.observe(scored.compute_seconds)

    def _measure(self, batch: Collection[TokenSequence], num_tokens: int, seconds: float) -> None:
        self._admission.observe_batch(num_tokens, seconds)
        self._metrics.batch_sequences.observe(len(batch))
        self._metrics.batch_tokens.observe(num_tokens)

    def _withdraw(self, job: Job) -> None:
        self._drop_abandoned()
        (self._metrics.waiting_requests if job.started_at is None else self._metrics.running_requests).dec()
        for epoch in self._epochs:
            epoch.pool_of(job).remove(job)
            if job in epoch.newcomers:
                epoch.newcomers.remove(job)
