"""Times and weights of a request, recorded while it runs for its log line and its trace. Knows nothing about HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import TypeVar

_Scores = TypeVar("_Scores", bound=Sized)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a request and its parts. Times are in seconds of ``perf_counter``."""

    name: str
    began: float
    ended: float
    num_scores: int | None = None
    parts: tuple[Stage, ...] = ()


@dataclass(slots=True)
class Computation:
    """One pass through the queue and the compute thread. Times are in seconds of ``perf_counter``.

    ``batch_ends`` has an entry for each batch that computed scores of the request: the batch's end, and the number of
    these scores. Its first entry is the time at which the request left the queue, and the number of cached scores.
    """

    submitted: float = field(default_factory=perf_counter)
    started: float | None = None
    finished: float | None = None
    batch_ends: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    def watching(self, tell: Callable[[_Scores], None] | None) -> Callable[[_Scores], None]:
        """Return a callback that records each batch and then calls ``tell``."""

        def watch(scores: _Scores) -> None:
            self.batch_ends.append((perf_counter(), len(scores)))
            if tell is not None:
                tell(scores)

        return watch

    def stages(self, ended: float) -> list[Stage]:
        """Return the stages until the pass finished, or ended early at ``ended``.

        Each batch begins where the one before it ended.
        """
        if self.started is None and not self.batch_ends:
            return [Stage("queue", self.submitted, ended)]
        started = self.batch_ends[0][0] if self.started is None else self.started
        ends = [(started, 0), *self.batch_ends[1:]]
        batches = [Stage("batch", began, end, num_scores) for (began, _), (end, num_scores) in pairwise(ends)]
        computed = Stage("compute", started, self.finished or ended, parts=tuple(batches))
        return [Stage("queue", self.submitted, started), computed]


@dataclass(slots=True)
class RequestRecord:
    """When a request reached each stage, and its weights. Times are in seconds of ``perf_counter``."""

    is_traced: bool = False
    began: float = field(default_factory=perf_counter)
    received: float | None = None
    computation: Computation | None = None
    gathered: float | None = None
    weight_version: int | None = None

    def stages(self, ended: float) -> list[Stage]:
        """Return the recorded stages, in order, of a request that ended at ``ended``."""
        if self.received is None:
            return []
        stages = [Stage("receive", self.began, self.received)]
        if (computation := self.computation) is not None:
            stages += [Stage("prepare", self.received, computation.submitted), *computation.stages(ended)]
            stages += self._after(computation.finished, ended)
        return stages

    def _after(self, computed: float | None, ended: float) -> list[Stage]:
        if computed is None:
            return []
        if self.gathered is None:
            return [Stage("answer", computed, ended)]
        return [Stage("gather", computed, self.gathered), Stage("answer", self.gathered, ended)]


_current: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


def begin_record(*, is_traced: bool) -> RequestRecord:
    """Start and return the record of a request that begins in this context."""
    record = RequestRecord(is_traced=is_traced)
    _current.set(record)
    return record


def current_record() -> RequestRecord:
    """Return the record of the request that runs in this context; outside of requests, a new one."""
    return _current.get() or RequestRecord()
