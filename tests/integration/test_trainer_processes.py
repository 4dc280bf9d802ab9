"""A run of several processes: groups are whole although each process holds a part, and a failure ends them all."""

from __future__ import annotations

from tests.trainer.ranks import said_by_two


def test_two_processes_share_a_group_and_its_end() -> None:
    assert said_by_two("tests.trainer.two_processes") == [
        "process 0: ConnectionError: the service is gone, 1 group was not scored",
        "process 0: reward -1.0, requests 1",
        "process 0: stops True",
        "process 1: MainProcessError: process 1 stops: the main process failed, see its message",
        "process 1: reward 1.0, requests 0",
        "process 1: stops True",
    ]
