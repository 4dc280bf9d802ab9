"""Threads for work that waits for a disk. Each kind of work has its own, so a disk that hangs blocks only one kind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

from vigor_service.errors import DeadlineExceededError

_P = ParamSpec("_P")
_R = TypeVar("_R")

FileWork = Literal["local", "staging", "removal", "verify", "state"]
"""Kinds of work, in this order: reading files under --weights-root; writing into the staging directory; removing from
it; verifying a whole update; the state directory."""


STEP_SECONDS = 60.0
"""Time limit in seconds for a step that handles a few mebibytes, or one file name."""
MODEL_SECONDS = 900.0
"""Time limit in seconds for verifying or storing a whole model."""


class _Kind(NamedTuple):
    num_threads: int
    disk: str
    takes_whole_model: bool = False


# Several uploads at once do not slow down a disk. Only one thread changes the state directory.
_KINDS: dict[FileWork, _Kind] = {
    "local": _Kind(4, "--weights-root"),
    "staging": _Kind(4, "the staging directory"),
    "removal": _Kind(2, "the staging directory"),
    "verify": _Kind(2, "the staging directory", takes_whole_model=True),
    "state": _Kind(1, "the state directory", takes_whole_model=True),
}


class FileThreads:
    """Runs work on files with a time limit: ``step_seconds`` for a step, ``model_seconds`` for a whole model.

    A thread that waits for a disk cannot be interrupted. After the limit its caller gets an error, and the thread keeps
    waiting.
    """

    def __init__(self, *, step_seconds: float = STEP_SECONDS, model_seconds: float = MODEL_SECONDS) -> None:
        self._pools = {
            name: ThreadPoolExecutor(kind.num_threads, thread_name_prefix=f"files-{name}")
            for name, kind in _KINDS.items()
        }
        self._seconds = {
            name: model_seconds if kind.takes_whole_model else step_seconds for name, kind in _KINDS.items()
        }
        self._running: set[Future[Any]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether all work has ended, including work whose caller has stopped waiting."""
        return not self._running

    async def run(self, kind: FileWork, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Return what ``work`` returns on a thread of this kind, or raise what it raises.

        Raises:
            DeadlineExceededError: the work takes too long, or all threads of this kind are blocked by such work.
        """
        future = self._pools[kind].submit(work, *args, **kwargs)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        limit = asyncio.timeout(self._seconds[kind])
        try:
            async with limit:
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if not limit.expired():
                raise  # raised by the work itself
            message = f"the disk of {_KINDS[kind].disk} did not answer within {self._seconds[kind]} seconds"
            raise DeadlineExceededError(message) from error

    async def run_steps(self, kind: FileWork, steps: Generator[None, None, _R]) -> _R:
        """Run a generator to its end and return what it returns. The time limit applies to each step up to a ``yield``.

        If the call ends early, the generator is closed at the end of the running step.

        Raises:
            DeadlineExceededError: a step takes too long.
        """
        given_up = threading.Event()
        try:
            while (ended := await self.run(kind, _run_step, steps, given_up)) is None:
                pass
        except BaseException:  # also a cancelled request
            given_up.set()
            with suppress(RuntimeError):  # the service is shutting down
                self._pools[kind].submit(_close, steps)
            raise
        return ended.value

    def close(self) -> None:
        """Accept no more work, without waiting for work in progress."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _run_step(steps: Generator[None, None, _R], given_up: threading.Event) -> StopIteration | None:
    """Advance the generator by one step. Return its StopIteration if it has ended, else None."""
    try:
        next(steps)
    except StopIteration as ended:
        return ended
    if given_up.is_set():
        _close(steps)
    return None


def _close(steps: Generator[None, None, Any]) -> None:
    with suppress(ValueError):  # a running step closes the generator when it ends
        steps.close()
