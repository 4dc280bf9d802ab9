"""What is learned of a request while it runs, for its log line and its trace. Knows nothing about HTTP."""

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
    """A part of a request, and what it consists of; its times are of ``perf_counter``, in seconds."""

    name: str
    began: float
    ended: float
    num_scores: int | None = None
    parts: tuple[Stage, ...] = ()


@dataclass(slots=True)
class Computation:
    """One way through the queue and over the compute thread; its times are of ``perf_counter``, in seconds.

    ``batch_ends`` has the end of each batch that brought scores, and how many of them. It begins with the moment its
    turn came, and those that were known.
    """

    submitted: float = field(default_factory=perf_counter)
    started: float | None = None
    finished: float | None = None
    batch_ends: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    def watching(self, tell: Callable[[_Scores], None] | None) -> Callable[[_Scores], None]:
        """Return what takes down the batches and then calls ``tell``."""

        def watch(scores: _Scores) -> None:
            self.batch_ends.append((perf_counter(), len(scores)))
            if tell is not None:
                tell(scores)

        return watch

    def finish(self, *, compute_seconds: float) -> None:
        """Take down that it ends now, and began to compute so many seconds ago."""
        self.finished = perf_counter()
        self.started = self.finished - compute_seconds

    def stages(self, ended: float) -> list[Stage]:
        """Return the parts until it was finished, or given up at ``ended``; batches begin where the last one ended."""
        if self.started is None and not self.batch_ends:
            return [Stage("queue", self.submitted, ended)]
        started = self.batch_ends[0][0] if self.started is None else self.started
        ends = [(started, 0), *self.batch_ends[1:]]
        batches = [Stage("batch", began, end, num_scores) for (began, _), (end, num_scores) in pairwise(ends)]
        computed = Stage("compute", started, self.finished or ended, parts=tuple(batches))
        return [Stage("queue", self.submitted, started), computed]


@dataclass(slots=True)
class RequestRecord:
    """When a request came how far, and which weights answered it; its times are of ``perf_counter``, in seconds."""

    is_traced: bool = False
    began: float = field(default_factory=perf_counter)
    received: float | None = None
    computation: Computation | None = None
    gathered: float | None = None
    weight_version: int | None = None

    def stages(self, ended: float) -> list[Stage]:
        """Return the parts that are known of a request that ended then, one after another."""
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
    """Return the record of the request that runs in this context from here on."""
    record = RequestRecord(is_traced=is_traced)
    _current.set(record)
    return record


def current_record() -> RequestRecord:
    """Return the record of the request that runs in this context; outside of requests, one that nobody reads."""
    return _current.get() or RequestRecord()
