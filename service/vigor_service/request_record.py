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

    ``batch_ends`` has the end of each batch that brought scores, and how many; it begins with those that were known.
    """

    submitted: float = field(default_factory=perf_counter)
    started: float = 0.0
    finished: float = 0.0
    batch_ends: list[tuple[float, int]] = field(default_factory=list)

    def watching(self, tell: Callable[[_Scores], None] | None) -> Callable[[_Scores], None]:
        """Return what takes down the batches and then calls ``tell``."""

        def watch(scores: _Scores) -> None:
            self.batch_ends.append((perf_counter(), len(scores)))
            if tell is not None:
                tell(scores)

        return watch

    def stage(self) -> Stage:
        """Return the time since its first batch began; a batch's own part is the time since the one before."""
        ends = [(self.started, 0), *self.batch_ends[1:]]
        parts = [Stage("batch", began, ended, num_scores) for (began, _), (ended, num_scores) in pairwise(ends)]
        return Stage("compute", self.started, self.finished, parts=tuple(parts))


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
        received = Stage("receive", self.began, self.received)
        if (computed := self.computation) is None:
            return [received]
        prepared = Stage("prepare", self.received, computed.submitted)
        queued = Stage("queue", computed.submitted, computed.started)
        gathered = [] if self.gathered is None else [Stage("gather", computed.finished, self.gathered)]
        answered = Stage("answer", self.gathered or computed.finished, ended)
        return [received, prepared, queued, computed.stage(), *gathered, answered]


_current: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)


def begin_record(*, is_traced: bool) -> RequestRecord:
    """Return the record of the request that runs in this context from here on."""
    record = RequestRecord(is_traced=is_traced)
    _current.set(record)
    return record


def current_record() -> RequestRecord:
    """Return the record of the request that runs in this context; outside of requests, one that nobody reads."""
    return _current.get() or RequestRecord()
