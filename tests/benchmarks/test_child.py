"""A measurement in a process of its own is bounded, and its end is told."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch

from benchmarks.child import in_child


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="memory is not bounded where a driver maps more than it uses")
def test_the_memory_of_a_child_is_bounded_below_that_of_the_machine() -> None:
    limit, _ = in_child(resource.getrlimit, resource.RLIMIT_DATA)
    assert 0 < int(limit) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_is_ended_from_outside_is_reported() -> None:
    assert in_child(_killed) == "the process was ended by the system, most likely for its memory"
