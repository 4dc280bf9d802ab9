import gc
import weakref
from collections.abc import Iterator

import pytest

from vigor_service.threads.garbage import LONGEST_SECONDS, QUIET_BYTES, OldGarbage


class Knot:
    """Points at itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


class Requests:
    held_bytes = 0
    seconds = 0.0

    def garbage(self) -> OldGarbage:
        return OldGarbage(lambda: self.held_bytes, clock=lambda: self.seconds)


@pytest.fixture(autouse=True)
def _python_collects_as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    assert gc.get_threshold() == thresholds


def old_knot() -> weakref.ref[Knot]:
    """Garbage that was in use when young objects were looked at, more than once, and many young passes after it."""
    knot = Knot()
    for _ in range(20):
        gc.collect(1)
    return weakref.ref(knot)


def test_python_does_not_look_at_old_objects_until_it_is_left_to_it_again() -> None:
    garbage = Requests().garbage()
    garbage.start()
    num_passes = gc.get_stats()[2]["collections"]
    kept = [[] for _ in range(500_000)]
    assert gc.get_stats()[2]["collections"] == num_passes
    garbage.stop()
    del kept


def test_old_garbage_is_collected_while_requests_hold_little() -> None:
    requests = Requests()
    garbage = requests.garbage()
    gc.collect()
    knot = old_knot()
    requests.held_bytes = QUIET_BYTES + 1
    assert not garbage.collect_if_quiet()
    assert knot() is not None
    requests.held_bytes = QUIET_BYTES
    assert garbage.collect_if_quiet()
    assert knot() is None


def test_after_a_long_time_without_quiet_it_is_collected_all_the_same() -> None:
    requests = Requests()
    garbage = requests.garbage()
    knot = old_knot()
    requests.held_bytes, requests.seconds = QUIET_BYTES + 1, LONGEST_SECONDS + 1
    assert garbage.collect_if_quiet()
    assert knot() is None


def test_without_young_passes_there_is_nothing_to_do() -> None:
    gc.collect()
    assert not Requests().garbage().collect_if_quiet()
