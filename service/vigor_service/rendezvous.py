"""Groups whose completions come one at a time, each from another caller: all wait, and a part is never ranked.

A group is admitted with its first sample, so that the others always find room. Norms are computed while the group
gathers; the cache of scores has them when it is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from vigor_client.schemas import (
    Completion,
    GivenPrompt,
    Group,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    ScoreResponse,
    ScoringOptions,
)
from vigor_service.errors import (
    DrainingError,
    GroupConflictError,
    GroupIncompleteError,
    QueueFullError,
    ServiceError,
)
from vigor_service.metrics import Metrics
from vigor_service.request_record import current_record
from vigor_service.scoring import Encoded, Scoring

MAX_HELD_BYTES = 256 << 20
"""Of all samples whose groups gather, or were answered a short time ago."""

_OPTIONS = frozenset(ScoringOptions.model_fields)
_PROMPT = frozenset(GivenPrompt.model_fields)
_OWN = frozenset({"index", "completion", "wait_seconds"})
"""What samples of one group may differ in."""


@dataclass(slots=True, eq=False)
class _Gathering:
    """One group: its samples so far, and its answer, of which every caller takes its own part."""

    first: SampleRequest
    timer: asyncio.TimerHandle
    answer: asyncio.Future[ScoreResponse]
    place: ExitStack
    completions: dict[int, Completion] = field(default_factory=dict)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    num_bytes: int = 0

    @property
    def is_whole(self) -> bool:
        return len(self.completions) == self.first.group_size


class Rendezvous:
    """Brings samples together by the name of their group.

    A group that is not whole ``timeout_seconds`` after its first sample fails for all who wait. One that was answered
    is remembered as long, so that a sample may be sent again, unless newer ones need the ``max_bytes`` of all.
    """

    def __init__(
        self, scoring: Scoring, *, timeout_seconds: float, metrics: Metrics, max_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self._scoring = scoring
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._num_bytes = 0
        self._groups: dict[str, _Gathering] = {}  # in the order of opening

    async def score(self, sample: SampleRequest, *, num_bytes: int) -> SampleResponse:
        """Wait for the sample's whole group and return the sample's own score. ``num_bytes`` is what it holds.

        A caller that leaves takes nothing with it: it may send its sample again, and find the others waiting.

        Raises:
            GroupConflictError: another sample of the group says otherwise.
            GroupIncompleteError: the others did not come in time.
            ServiceError: the sample, or the whole group, was not scored; says why.
        """
        encoded = await self._scoring.encode_alone(_request(sample, {0: sample.completion}))
        gathering = self._groups.get(sample.group) or self._open(sample, encoded)
        if self._joins(gathering, sample):
            self._hold(gathering, num_bytes)
            gathering.completions[sample.index] = sample.completion
            self._advance(gathering, sample, encoded)
        record = current_record()
        try:
            response = await asyncio.shield(gathering.answer)
        finally:
            record.gathered = perf_counter()
        record.weight_version = response.weight_version
        return _own_part(response, sample)

    def withdraw(self, name: str, index: int) -> bool:
        """Take a sample out of a group that is not whole; return whether its place is free."""
        gathering = self._groups.get(name)
        if gathering is None:
            return True
        if gathering.is_whole:
            return False
        gathering.completions.pop(index, None)
        if not gathering.completions:
            self._forget(gathering)
        self._count()
        return True

    def drain(self) -> None:
        """Fail the groups that wait for samples: none will come any more."""
        error = DrainingError("the service is shutting down; the group was not whole", retry_after_seconds=1.0)
        for gathering in list(self._groups.values()):
            if not gathering.is_whole:
                self._fail(gathering, error)

    def close(self) -> None:
        """Forget everything at once."""
        for gathering in list(self._groups.values()):
            self._forget(gathering)

    def _open(self, sample: SampleRequest, encoded: Encoded) -> _Gathering:
        loop, place = asyncio.get_running_loop(), ExitStack()
        place.enter_context(self._scoring.admission.hold(encoded.num_tokens * sample.group_size))
        timer = loop.call_later(self._timeout_seconds, self._expire, sample.group)
        gathering = self._groups[sample.group] = _Gathering(sample, timer, loop.create_future(), place)
        gathering.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())  # nobody may wait
        return gathering

    def _joins(self, gathering: _Gathering, sample: SampleRequest) -> bool:
        """Whether it is new to the group.

        Raises:
            GroupConflictError: it cannot belong to it.
        """
        first = gathering.first
        differing = [
            name
            for name in SampleRequest.model_fields
            if name not in _OWN and getattr(sample, name) != getattr(first, name)
        ]
        if differing:
            raise GroupConflictError(
                f"group {sample.group!r}: sample {sample.index} has another {', '.join(differing)} than sample "
                f"{first.index}; nothing was taken from it"
            )
        known = gathering.completions.get(sample.index)
        if known not in (None, sample.completion):
            raise GroupConflictError(
                f"group {sample.group!r}: sample {sample.index} came before, with another completion; nothing was taken"
            )
        return known is None

    def _hold(self, gathering: _Gathering, num_bytes: int) -> None:
        for other in list(self._groups.values()):
            if self._num_bytes + num_bytes <= self._max_bytes:
                break
            if other.answer.done():
                self._forget(other)
        if self._num_bytes + num_bytes > self._max_bytes:
            if not gathering.completions:
                self._forget(gathering)
            raise QueueFullError("too many samples wait for their groups; come back later", retry_after_seconds=1.0)
        gathering.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def _advance(self, gathering: _Gathering, sample: SampleRequest, encoded: Encoded) -> None:
        """Rank the group if this was its last sample, else begin to compute this one."""
        self._count()
        if not gathering.is_whole:
            self._start(gathering, self._compute_ahead(encoded))
            return
        gathering.timer.cancel()
        scoring = self._start(gathering, self._score(_request(sample, gathering.completions)))
        scoring.add_done_callback(lambda task: self._finish(gathering, task))

    def _start(self, gathering: _Gathering, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        gathering.tasks.add(task)
        task.add_done_callback(gathering.tasks.discard)
        return task

    async def _compute_ahead(self, encoded: Encoded) -> None:
        with suppress(ServiceError):  # it comes again when the whole group is scored, and then all are told
            await self._scoring.compute(encoded)

    async def _score(self, whole: ScoreRequest) -> ScoreResponse:
        async with self._scoring.time_limit(whole):
            encoded = await self._scoring.encode(whole)
            return await self._scoring.grade(encoded, await self._scoring.compute(encoded))

    def _finish(self, gathering: _Gathering, scoring: asyncio.Task[ScoreResponse]) -> None:
        gathering.place.close()
        if scoring.cancelled():
            self._forget(gathering)
        elif (error := scoring.exception()) is not None:
            self._fail(gathering, error)
        else:
            gathering.answer.set_result(scoring.result())
            loop = asyncio.get_running_loop()
            gathering.timer = loop.call_later(self._timeout_seconds, self._forget, gathering)

    def _expire(self, name: str) -> None:
        gathering = self._groups[name]
        came, size = len(gathering.completions), gathering.first.group_size
        message = f"group {name!r}: {came} of {size} samples came within {self._timeout_seconds:g} seconds"
        self._fail(gathering, GroupIncompleteError(f"{message}; nothing was ranked", came=came, group_size=size))

    def _fail(self, gathering: _Gathering, error: BaseException) -> None:
        gathering.answer.set_exception(error)
        self._forget(gathering)

    def _forget(self, gathering: _Gathering) -> None:
        gathering.timer.cancel()
        gathering.place.close()
        gathering.answer.cancel()
        for task in list(gathering.tasks):
            task.cancel()
        if self._groups.get(gathering.first.group) is gathering:
            del self._groups[gathering.first.group]
            self._num_bytes -= gathering.num_bytes
        self._count()

    def _count(self) -> None:
        waiting = [gathering for gathering in self._groups.values() if not gathering.is_whole]
        self._metrics.gathering_groups.set(len(waiting))
        self._metrics.gathering_samples.set(sum(len(gathering.completions) for gathering in waiting))


def _request(sample: SampleRequest, completions: dict[int, Completion]) -> ScoreRequest:
    """The samples as one group of a score request, in the order of their indices."""
    ordered = [completions[index] for index in sorted(completions)]
    group = Group(id=sample.group, completions=ordered, **{name: getattr(sample, name) for name in _PROMPT})
    return ScoreRequest(groups=[group], **{name: getattr(sample, name) for name in _OPTIONS})


def _own_part(response: ScoreResponse, sample: SampleRequest) -> SampleResponse:
    return SampleResponse(
        model=response.model,
        weight_version=response.weight_version,
        weight_digest=response.weight_digest,
        reward=response.reward,
        group=sample.group,
        index=sample.index,
        completion=response.groups[0].completions[sample.index],
        prompt_ids=response.groups[0].prompt_ids,
    )
