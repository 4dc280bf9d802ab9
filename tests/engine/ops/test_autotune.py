"""The fastest way by measured time is taken, and a way that fails is left out with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vigor_service.engine.ops.autotune import Autotuner, UnavailableError, Way, device_seconds

WORK = "norms of 4 × 4"


class Ways:
    """Fake ways of a given duration; each gives its own duration as its result."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.broken: dict[str, Exception] = {}
        self.timed: list[float] = []

    def calls(self) -> dict[str, Way]:
        return {name: self._call(name) for name in self.seconds}

    def timer(self, way: Way) -> float:
        seconds = way().item()
        self.timed.append(seconds)
        return seconds

    def _call(self, name: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            if name in self.broken:
                raise self.broken[name]
            return torch.tensor(self.seconds[name])

        return call


def test_the_fastest_way_gives_the_result() -> None:
    ways = Ways(torch=3.0, triton=1.0, other=2.0)
    assert Autotuner(ways.timer).run(WORK, ways.calls()).item() == 1.0


def test_each_kind_of_work_is_timed_once() -> None:
    ways = Ways(torch=3.0, triton=1.0)
    fastest = Autotuner(ways.timer)
    for work in (WORK, WORK, "other work", WORK):
        fastest.run(work, ways.calls())
    assert ways.timed == [3.0, 1.0] * 2


def test_a_way_that_is_unavailable_when_it_is_timed_is_left_out_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    ways = Ways(torch=3.0, triton=1.0)
    fastest = Autotuner(ways.timer)
    ways.broken["triton"] = UnavailableError("no compiler")
    with caplog.at_level(logging.WARNING):
        assert fastest.run(WORK, ways.calls()).item() == 3.0
    assert f"{WORK}: not by triton: no compiler" in caplog.text
    ways.broken.clear()
    assert fastest.run(WORK, ways.calls()).item() == 3.0
    assert ways.timed == [3.0]


def test_a_way_whose_timing_ran_out_of_memory_is_timed_again(caplog: pytest.LogCaptureFixture) -> None:
    ways = Ways(torch=3.0, triton=1.0)
    fastest = Autotuner(ways.timer)
    ways.broken["triton"] = torch.OutOfMemoryError("no memory")
    with caplog.at_level(logging.WARNING):
        assert fastest.run(WORK, ways.calls()).item() == 3.0
    assert f"{WORK}: not by triton for now: no memory" in caplog.text
    ways.broken.clear()
    assert fastest.run(WORK, ways.calls()).item() == 1.0
    assert ways.timed == [3.0, 1.0]


def test_a_way_that_never_fits_into_memory_is_timed_ever_more_seldom() -> None:
    ways = Ways(torch=3.0, triton=1.0)
    ways.broken["triton"] = torch.OutOfMemoryError("no memory")
    tries: list[Way] = []

    def timer(way: Way) -> float:
        tries.append(way)
        return way().item()

    fastest = Autotuner(timer)
    for _ in range(1000):
        fastest.run(WORK, ways.calls())
    assert len(tries) == 1 + 11  # torch once; triton before the runs 1, 2, 3, 5, …, 513


def test_a_way_that_fails_later_gives_way_to_the_next_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    ways = Ways(torch=3.0, triton=1.0)
    fastest = Autotuner(ways.timer)
    fastest.run(WORK, ways.calls())
    ways.broken["triton"] = UnavailableError("no driver")
    with caplog.at_level(logging.WARNING):
        assert [fastest.run(WORK, ways.calls()).item() for _ in range(2)] == [3.0, 3.0]
    assert caplog.text.count(f"{WORK}: no longer by triton: no driver") == 1


def test_memory_that_runs_out_later_is_not_the_fault_of_the_way() -> None:
    ways = Ways(torch=3.0, triton=1.0)
    fastest = Autotuner(ways.timer)
    fastest.run(WORK, ways.calls())
    ways.broken["triton"] = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        fastest.run(WORK, ways.calls())
    ways.broken.clear()
    assert fastest.run(WORK, ways.calls()).item() == 1.0


def test_memory_is_the_reason_when_no_way_is_left_and_one_ran_out_of_it() -> None:
    ways = Ways(torch=3.0, triton=1.0)
    ways.broken = {"torch": torch.OutOfMemoryError("no memory"), "triton": UnavailableError("no driver")}
    fastest = Autotuner(ways.timer)
    with pytest.raises(torch.OutOfMemoryError):
        fastest.run(WORK, ways.calls())
    ways.broken.clear()
    assert fastest.run(WORK, ways.calls()).item() == 1.0


def test_the_reason_of_the_last_way_is_raised_when_none_is_left() -> None:
    ways = Ways(torch=3.0, triton=1.0)
    ways.broken = {name: UnavailableError(f"no {name}") for name in ways.seconds}
    fastest = Autotuner(ways.timer)
    with pytest.raises(UnavailableError, match="no triton"):
        fastest.run(WORK, ways.calls())
    ways.broken.clear()
    assert fastest.run(WORK, ways.calls()).item() == 1.0
    ways.broken = {name: UnavailableError(f"no {name}") for name in ways.seconds}
    with pytest.raises(UnavailableError, match="no torch"):
        fastest.run(WORK, ways.calls())


def test_other_errors_are_not_swallowed() -> None:
    ways = Ways(torch=3.0, triton=1.0)
    ways.broken["triton"] = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        Autotuner(ways.timer).run(WORK, ways.calls())


def test_work_without_any_way_is_refused() -> None:
    with pytest.raises(UnavailableError, match="no way"):
        Autotuner(lambda _: 0.0).run(WORK, {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_more_work_takes_longer_on_the_device() -> None:
    small, large = torch.ones(64, 64, device="cuda"), torch.ones(8192, 8192, device="cuda")
    assert device_seconds(lambda: small @ small) < device_seconds(lambda: large @ large)
