"""Threads that run what they are given in order. One of them computes: it alone touches the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


class WorkerThread:
    """Never runs two things at once. An error goes to who asked; the thread goes on."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._latest: Future[Any] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything that was given to the thread is done."""
        return self._latest is None or self._latest.done()

    async def run(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``work`` returns on the thread, or raise what it raises."""
        future = self._executor.submit(work, *args, **kwargs)
        self._latest = future
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take no more work. What runs is not waited for: it cannot be interrupted."""
        self._executor.shutdown(wait=False, cancel_futures=True)
