"""Threads that each run torch by themselves."""

from __future__ import annotations

import threading

import pytest
import torch

from vigor_service.engine.batching.cpu_workers import Workers


def test_queues_run_at_once_and_answer_in_their_order() -> None:
    workers = Workers()
    barrier = threading.Barrier(workers.count, timeout=30)

    def meet(item: int) -> int:
        barrier.wait()  # nobody passes alone
        return 2 * item

    queues = [[10 * index, 10 * index + 1] for index in range(workers.count)]
    assert workers.run(meet, queues) == [[2 * item for item in queue] for queue in queues]


def test_workers_share_out_the_threads_and_others_have_as_many_as_before() -> None:
    before = torch.get_num_threads()
    workers = Workers()
    assert workers.run(lambda _: torch.get_num_threads(), [[None]]) == [[before // workers.count]]
    assert torch.get_num_threads() == before
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_error_is_raised_when_all_queues_have_ended() -> None:
    workers, done = Workers(), []

    def divide(item: int) -> float:
        result = 1 / item
        done.append(item)
        return result

    with pytest.raises(ZeroDivisionError):
        workers.run(divide, [[0, 5], [1, 2]] if workers.count > 1 else [[1, 2, 0, 5]])
    assert done == [1, 2]
