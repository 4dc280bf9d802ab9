"""Groups whose completions come one at a time, each from another caller: all wait, and a part is never ranked.

A group has its place in the queue from its first sample on, so that the others always find room; it holds the tokens of
the samples that came. Each sample's norm is computed when it comes, and kept with the group until that is whole.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from time import perf_counter
from typing import Any

from vigor_client.schemas.scoring import SampleRequest, SampleResponse, ScoringOptions
from vigor_service.errors import DrainingError, GroupIncompleteError, QueueFullError, ServiceError
from vigor_service.observability.metrics import Metrics
from vigor_service.observability.request_record import current_record
from vigor_service.sample_groups.open_group import Answer, OpenGroup, encoded_group
from vigor_service.sample_groups.samples import Sample
from vigor_service.scheduling.score_cache import ScoreCache
from vigor_service.scoring.encoded import EncodedRequest
from vigor_service.scoring.service import Scoring

MAX_HELD_BYTES = 256 << 20
"""Of all samples whose groups are incomplete, or were answered a short time ago."""


class GroupAssembly:
    """Brings samples together by the name of their group.

    A group that is not whole ``timeout_seconds`` after its first sample fails for all callers that wait; one whose last
    caller leaves is dropped, with its place in the queue. An answered one is remembered for ``timeout_seconds``, so
    that a sample may be sent again, unless newer groups need its part of ``max_bytes``, which all groups share.
    """

    def __init__(
        self, scoring: Scoring, *, timeout_seconds: float, metrics: Metrics, max_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self._scoring = scoring
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._num_bytes = 0
        self._groups: dict[str, OpenGroup] = {}
        self._answered: OrderedDict[str, OpenGroup] = OrderedDict()  # of these groups, oldest first

    async def score(self, request: SampleRequest) -> SampleResponse:
        """Wait for the sample's whole group and return the sample's own score.

        Raises as ``RequestEncoder.encode_sample`` and ``join``.
        """
        sequence = await self._scoring.encoder.encode_sample(request, request.completion)
        is_truncated = request.completion.finish_reason == "length"
        options = ScoringOptions(**{name: getattr(request, name) for name in ScoringOptions.model_fields})
        sample = Sample(request.group, request.group_size, request.index, sequence, is_truncated, options)
        del request, sequence  # the others may be awaited for long: only the sample is held
        return await self.join(sample)

    async def join(self, sample: Sample) -> SampleResponse:
        """Wait for the sample's whole group and return the sample's own score.

        A caller that leaves takes nothing with it while others wait: it may send its sample again, and find them.

        Raises:
            GroupConflictError: another sample of the group says otherwise.
            GroupIncompleteError: the others did not come in time.
            QueueFullError: the queue has no place for a new group, or too many samples are held.
            ServiceError: the whole group was not scored; says why.
        """
        group = self._groups.get(sample.group)
        if group is None or group.lacks(sample):
            self._make_room(sample.num_bytes)
            group = self._add(group or self._open(sample), sample)
        return _own_part(await self._answer(group), sample)

    def withdraw(self, name: str, index: int) -> bool:
        """Take a sample out of a group that is not whole; return whether its place is free."""
        group = self._groups.get(name)
        if group is None:
            return True
        if group.is_whole:
            return False
        self._remove(group, index)
        return True

    @contextmanager
    def holding(self, num_bytes: int) -> Generator[None]:
        """Count what a caller holds that waits for room in the queue, before its sample is in a group.

        Raises:
            QueueFullError: too many samples are held.
        """
        self._make_room(num_bytes)
        self._num_bytes += num_bytes
        try:
            yield
        finally:
            self._num_bytes -= num_bytes

    def drain(self) -> None:
        """Fail the groups that wait for samples: the service takes no more."""
        error = DrainingError("the service is shutting down before the group was complete", retry_after_seconds=1.0)
        for group in list(self._groups.values()):
            if not group.is_whole:
                self._fail(group, error)

    def close(self) -> None:
        """Forget everything at once."""
        for group in list(self._groups.values()):
            self._forget(group)

    async def _answer(self, group: OpenGroup) -> Answer:
        """Wait for the answer; when the last caller leaves before it comes, the group is dropped."""
        record = current_record()
        group.num_waiting += 1
        try:
            group_line, last_line = await asyncio.shield(group.answer)
        finally:
            record.gathered = perf_counter()
            group.num_waiting -= 1
            if group.num_waiting == 0 and not group.answer.done():
                self._forget(group)
        record.weight_version = last_line.weight_version
        return group_line, last_line

    def _open(self, sample: Sample) -> OpenGroup:
        loop, leave_queue = asyncio.get_running_loop(), ExitStack()
        place = leave_queue.enter_context(self._scoring.admission.hold(sample.sequence.num_tokens))
        timer = loop.call_later(self._timeout_seconds, self._expire, sample.group)
        scores = ScoreCache(sample.group_size, keeps_token_logprobs=True)
        group = OpenGroup(sample, timer, loop.create_future(), place, leave_queue, scores)
        group.answer.add_done_callback(_mark_exception_as_read)
        self._groups[sample.group] = group
        self._count(groups=1)
        return group

    def _add(self, group: OpenGroup, sample: Sample) -> OpenGroup:
        """Take a sample in. Rank the group if this was its last, else begin to compute this one."""
        sample = sample.behind(group.first.sequence.prompt_ids)
        if group.samples:  # the first one's tokens came with the place
            group.place.add(sample.sequence.num_tokens)
        group.samples[sample.index] = sample
        group.num_bytes += sample.num_bytes
        self._num_bytes += sample.num_bytes
        self._count(samples=1)
        if group.is_whole:
            self._count(groups=-1, samples=-len(group.samples))
            group.timer.cancel()
            scoring = self._scoring.score_group(group.encoded(), sample.options, own_scores=group.scores)
            group.scoring = asyncio.create_task(scoring)
            group.scoring.add_done_callback(lambda scoring: self._finish(group, scoring))
        else:
            group.computing[sample.index] = asyncio.create_task(self._compute_ahead(group, sample))
        return group

    def _remove(self, group: OpenGroup, index: int) -> None:
        sample = group.samples.pop(index, None)
        if sample is None:
            return
        group.computing.pop(index).cancel()
        group.place.add(-sample.sequence.num_tokens)
        group.num_bytes -= sample.num_bytes
        self._num_bytes -= sample.num_bytes
        self._count(samples=-1)
        if not group.samples:
            self._forget(group)

    def _make_room(self, num_bytes: int) -> None:
        while self._answered and self._num_bytes + num_bytes > self._max_bytes:
            self._forget(next(iter(self._answered.values())))
        if self._num_bytes + num_bytes > self._max_bytes:
            raise QueueFullError(
                "too many samples are waiting for the rest of their groups; retry later", retry_after_seconds=1.0
            )

    async def _compute_ahead(self, group: OpenGroup, sample: Sample) -> None:
        with suppress(ServiceError):  # it is raised again when the whole group is scored, for all callers
            request = EncodedRequest(sample.options, [encoded_group([sample])])
            await self._scoring.compute(request, own_scores=group.scores)

    def _finish(self, group: OpenGroup, scoring: asyncio.Task[Answer]) -> None:
        group.leave_queue.close()
        if scoring.cancelled():
            self._forget(group)
        elif (error := scoring.exception()) is not None:
            self._fail(group, error)
        else:
            group.answer.set_result(scoring.result())
            loop = asyncio.get_running_loop()
            group.timer = loop.call_later(self._timeout_seconds, self._forget, group)
            self._answered[group.first.group] = group

    def _expire(self, name: str) -> None:
        group = self._groups[name]
        came, size = len(group.samples), group.first.group_size
        message = f"group {name!r}: only {came} of {size} samples arrived within {self._timeout_seconds:g} seconds"
        self._fail(group, GroupIncompleteError(f"{message}; nothing was ranked", came=came, group_size=size))

    def _fail(self, group: OpenGroup, error: BaseException) -> None:
        group.answer.set_exception(error)
        self._forget(group)

    def _forget(self, group: OpenGroup) -> None:
        name = group.first.group
        if self._groups.get(name) is not group:
            return
        del self._groups[name]
        self._answered.pop(name, None)
        self._num_bytes -= group.num_bytes
        if not group.is_whole:
            self._count(groups=-1, samples=-len(group.samples))
        group.timer.cancel()
        group.leave_queue.close()
        group.answer.cancel()
        for task in filter(None, (*group.computing.values(), group.scoring)):
            task.cancel()

    def _count(self, *, groups: int = 0, samples: int = 0) -> None:
        self._metrics.gathering_groups.inc(groups)
        self._metrics.gathering_samples.inc(samples)


def _mark_exception_as_read(answer: asyncio.Future[Any]) -> None:
    """Asyncio logs an exception that is never read, and no caller may be left to read it."""
    if not answer.cancelled():
        answer.exception()


def _own_part(answer: Answer, sample: Sample) -> SampleResponse:
    group_line, last_line = answer
    return SampleResponse(
        model=last_line.model,
        weight_version=last_line.weight_version,
        weight_digest=last_line.weight_digest,
        reward=last_line.reward,
        group=sample.group,
        index=sample.index,
        completion=group_line.completions[sample.index],
        prompt_ids=group_line.prompt_ids,
    )
