"""Assembles groups whose completions arrive one at a time, each from its own caller. A part is never ranked.

The first sample takes the group's place in the queue, so that the later ones always find room. The place counts the
tokens of the samples that have arrived. Each sample's norm is computed when it arrives, and kept until the group is
complete.
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
"""Maximum memory for all samples whose groups are incomplete or were answered recently, in bytes."""


class GroupAssembly:
    """Brings samples together by the name of their group.

    A group that is incomplete ``timeout_seconds`` after its first sample fails for all callers that wait. A group whose
    last caller disconnects is dropped, with its place in the queue. An answered group is kept for ``timeout_seconds``,
    so that a sample may be sent again. It is dropped earlier if newer groups need its part of ``max_bytes``, which all
    groups share.
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
        self._answered: OrderedDict[str, OpenGroup] = OrderedDict()  # the answered ones of these groups, oldest first

    async def score(self, request: SampleRequest) -> SampleResponse:
        """Wait for the sample's whole group and return the sample's own score.

        Raises as ``RequestEncoder.encode_sample`` and ``join``.
        """
        sequence = await self._scoring.encoder.encode_sample(request, request.completion)
        is_truncated = request.completion.finish_reason == "length"
        options = ScoringOptions(**{name: getattr(request, name) for name in ScoringOptions.model_fields})
        sample = Sample(request.group, request.group_size, request.index, sequence, is_truncated, options)
        del request, sequence  # only the sample is held during a possibly long wait
        return await self.join(sample)

    async def join(self, sample: Sample) -> SampleResponse:
        """Wait for the sample's whole group and return the sample's own score.

        A caller that disconnects does not remove its sample while others wait: it may send the sample again.

        Raises:
            GroupConflictError: the sample contradicts another one of the group.
            GroupIncompleteError: the other samples did not arrive in time.
            QueueFullError: the queue has no room for a new group, or too many samples are held.
            ServiceError: the whole group was not scored; the message says why.
        """
        group = self._groups.get(sample.group)
        if group is None or group.lacks(sample):
            self._make_room(sample.num_bytes)
            group = self._add(group or self._open(sample), sample)
        return _own_part(await self._answer(group), sample)

    def withdraw(self, name: str, index: int) -> bool:
        """Remove a sample from an incomplete group. Return whether its index is free afterwards."""
        group = self._groups.get(name)
        if group is None:
            return True
        if group.is_whole:
            return False
        self._remove(group, index)
        return True

    @contextmanager
    def holding(self, num_bytes: int) -> Generator[None]:
        """Count the memory of a caller that waits for room in the queue before its sample is in a group.

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
        """Fail the groups that wait for samples, because the service accepts no more."""
        error = DrainingError("the service is shutting down before the group was complete", retry_after_seconds=1.0)
        for group in list(self._groups.values()):
            if not group.is_whole:
                self._fail(group, error)

    def close(self) -> None:
        """Drop all groups at once."""
        for group in list(self._groups.values()):
            self._forget(group)

    async def _answer(self, group: OpenGroup) -> Answer:
        """Wait for the group's answer. If the last caller disconnects before it is ready, drop the group."""
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
        """Add a sample. Rank the group if this was its last sample, else begin to compute this one's norm."""
        sample = sample.behind(group.first.sequence.prompt_ids)
        if group.samples:  # the place already counts the first sample's tokens
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
        with suppress(ServiceError):  # scoring the whole group raises it again, for all callers
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
    """Read the exception: asyncio would log one that is never read, and there may be no caller left to read it."""
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
