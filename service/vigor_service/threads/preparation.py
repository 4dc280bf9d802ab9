"""Threads for a request's work before and after the model: tokenizing, ranking, writing the answer.

Two kinds of work have their own threads, so that neither waits for the other: texts, whose tokenizer or template may
take seconds, and everything else, which takes milliseconds. Callers run work of less than a millisecond directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from vigor_service.errors import QueueFullError
from vigor_service.threads.work_limit import WorkLimit

NUM_TEXT_THREADS = 4
NUM_OTHER_THREADS = 2
MAX_WAITING = 4096
"""Maximum number of pieces of work of one kind that wait or run; further work is refused."""
RETRY_SECONDS = 1.0

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Preparation:
    """The threads of both kinds.

    ``seconds`` limits the processor time of one piece of work, which may exceed it by the time between two checkpoints.
    """

    def __init__(self, *, seconds: float) -> None:
        self._texts = WorkerPool("texts", num_threads=NUM_TEXT_THREADS, seconds=seconds)
        self._others = WorkerPool("prepare", num_threads=NUM_OTHER_THREADS, seconds=seconds)

    @property
    def is_idle(self) -> bool:
        """Whether all work is done, waiting work included."""
        return self._texts.is_idle and self._others.is_idle

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run work without tokenizers and templates, and return its result. Raises as ``WorkerPool.run``."""
        return await self._others.run(work, *args, **kwargs)

    async def run_on_texts(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run work with tokenizers or templates, and return its result. Raises as ``WorkerPool.run``."""
        return await self._texts.run(work, *args, **kwargs)

    def close(self) -> None:
        """Take no more work, and end what runs at its next checkpoint."""
        self._texts.close()
        self._others.close()


class WorkerPool:
    """A few threads with a bounded queue, and a limit of processor time for each piece of work."""

    def __init__(self, name: str, *, num_threads: int, seconds: float, max_waiting: int = MAX_WAITING) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._max_waiting = max_waiting
        self._seconds = seconds
        self._limits: dict[Future[Any], WorkLimit] = {}  # of work that waits or runs

    @property
    def is_idle(self) -> bool:
        """Whether all accepted work is done."""
        return not self._limits

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``work`` returns on one of the threads, or raise what it raises.

        Cancelling the call removes the work from the queue, or ends it at its next checkpoint.

        Raises:
            QueueFullError: too much work is waiting already.
            PayloadTooLargeError: the work used its processor time.
        """
        if len(self._limits) >= self._max_waiting:
            detail = f"{len(self._limits)} requests are already waiting to be tokenized; retry later"
            raise QueueFullError(detail, retry_after_seconds=RETRY_SECONDS)
        limit = WorkLimit(self._seconds)
        future = self._executor.submit(limit.run, work, *args, **kwargs)
        self._limits[future] = limit
        future.add_done_callback(lambda done: self._limits.pop(done, None))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            limit.abandon()
            raise

    def close(self) -> None:
        """Take no more work, and end what runs at its next checkpoint."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for limit in list(self._limits.values()):
            limit.abandon()
