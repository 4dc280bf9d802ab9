"""Several batches at once on a CPU, each on its own thread.

Two threads with one batch each are faster than two threads that share every operation: no operation is forked and
joined, and one core's caches hold one batch (docs/decisions/0012-a-batch-a-thread.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

import torch

MAX_WORKERS = 8  # each keeps the activations of a batch in memory

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Up to ``MAX_WORKERS`` worker threads, each with an equal part of ``num_threads`` for its torch operations.

    ``num_threads`` None: the number that torch uses for one operation.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        num_threads = num_threads or torch.get_num_threads()
        self.count = min(num_threads, MAX_WORKERS)
        self._executor = ThreadPoolExecutor(self.count, thread_name_prefix="engine")
        barrier = threading.Barrier(self.count)  # so that each worker thread runs exactly one ``set_count``
        set_count = partial(_set_thread_count, barrier)
        list(self._executor.map(set_count, [num_threads // self.count] * self.count))
        torch.set_num_threads(num_threads)  # threads that start later take the number that was set last

    def run(self, function: Callable[[T], R], queues: Sequence[Sequence[T]]) -> list[list[R]]:
        """Return ``[[function(item) for item in queue] for queue in queues]``, with a thread for each queue.

        An error ends only its own queue, and is raised after all queues have ended.
        """
        futures = [self._executor.submit(_run_all, function, queue) for queue in queues]
        wait(futures)
        return [future.result() for future in futures]


def _run_all(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def _set_thread_count(barrier: threading.Barrier, num_threads: int) -> None:
    barrier.wait()
    torch.get_num_threads()  # the first call in a thread sets its number to the process's
    torch.set_num_threads(num_threads)
