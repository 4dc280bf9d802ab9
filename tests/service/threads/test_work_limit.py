"""Work is stopped at its own checkpoints: after its processor time, and when no one waits for it."""

import threading

import pytest

from vigor_service.errors import ClientGoneError, PayloadTooLargeError
from vigor_service.threads.work_limit import WorkLimit, checkpoint


def test_work_that_has_used_its_time_ends_at_its_next_checkpoint() -> None:
    now, steps = [100.0], []

    def work() -> None:
        for step in range(10):
            checkpoint()
            steps.append(step)
            now[0] += 0.4

    with pytest.raises(PayloadTooLargeError, match=r"more than 1 seconds of processor time.*send fewer groups"):
        WorkLimit(1.0, clock=lambda: now[0]).run(work)
    assert steps == [0, 1, 2]


def test_what_others_do_meanwhile_does_not_count() -> None:
    def work() -> str:
        threading.Event().wait(0.05)
        checkpoint()
        return "done"

    assert WorkLimit(0.03).run(work) == "done"


def test_real_work_is_stopped_by_the_systems_account_of_the_thread() -> None:
    def work() -> None:
        while True:
            checkpoint()

    with pytest.raises(PayloadTooLargeError):
        WorkLimit(0.02).run(work)


def test_abandoned_work_ends() -> None:
    limit = WorkLimit(1000.0)

    def work() -> None:
        checkpoint()
        limit.abandon()
        checkpoint()

    with pytest.raises(ClientGoneError):
        limit.run(work)


def test_outside_of_a_limit_a_checkpoint_does_nothing() -> None:
    checkpoint()
    WorkLimit(0.0, clock=lambda: 0.0).run(checkpoint)
    checkpoint()
