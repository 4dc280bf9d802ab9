"""The fastest implementation by measured time is taken, and one that fails is left out with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vigor_service.engine.ops.autotune import Autotuner, Implementation, UnavailableError, device_seconds

WORK = "norms of 4 × 4"


class FakeImplementations:
    """Fake implementations of a given duration; each gives its own duration as its result."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.broken: dict[str, Exception] = {}
        self.timed: list[float] = []

    def calls(self) -> dict[str, Implementation]:
        return {name: self._call(name) for name in self.seconds}

    def timer(self, implementation: Implementation) -> float:
        seconds = implementation().item()
        self.timed.append(seconds)
        return seconds

    def _call(self, name: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            if name in self.broken:
                raise self.broken[name]
            return torch.tensor(self.seconds[name])

        return call


def test_the_fastest_gives_the_result() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0, other=2.0)
    assert Autotuner(implementations.timer).run(WORK, implementations.calls()).item() == 1.0


def test_each_kind_of_work_is_timed_once() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    autotuner = Autotuner(implementations.timer)
    for work in (WORK, WORK, "other work", WORK):
        autotuner.run(work, implementations.calls())
    assert implementations.timed == [3.0, 1.0] * 2


def test_an_implementation_that_is_unavailable_when_it_is_timed_is_left_out_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    autotuner = Autotuner(implementations.timer)
    implementations.broken["triton"] = UnavailableError("no compiler")
    with caplog.at_level(logging.WARNING):
        assert autotuner.run(WORK, implementations.calls()).item() == 3.0
    assert f"{WORK}: triton is not used: no compiler" in caplog.text
    implementations.broken.clear()
    assert autotuner.run(WORK, implementations.calls()).item() == 3.0
    assert implementations.timed == [3.0]


def test_an_implementation_whose_timing_ran_out_of_memory_is_timed_again(caplog: pytest.LogCaptureFixture) -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    autotuner = Autotuner(implementations.timer)
    implementations.broken["triton"] = torch.OutOfMemoryError("no memory")
    with caplog.at_level(logging.WARNING):
        assert autotuner.run(WORK, implementations.calls()).item() == 3.0
    assert f"{WORK}: triton failed and is not used for now: no memory" in caplog.text
    implementations.broken.clear()
    assert autotuner.run(WORK, implementations.calls()).item() == 1.0
    assert implementations.timed == [3.0, 1.0]


def test_an_implementation_that_never_fits_into_memory_is_timed_ever_more_seldom() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    implementations.broken["triton"] = torch.OutOfMemoryError("no memory")
    tries: list[Implementation] = []

    def timer(implementation: Implementation) -> float:
        tries.append(implementation)
        return implementation().item()

    autotuner = Autotuner(timer)
    for _ in range(1000):
        autotuner.run(WORK, implementations.calls())
    assert len(tries) == 1 + 11  # torch once; triton before the runs 1, 2, 3, 5, …, 513


def test_an_implementation_that_fails_later_is_replaced_by_the_next_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    autotuner = Autotuner(implementations.timer)
    autotuner.run(WORK, implementations.calls())
    implementations.broken["triton"] = UnavailableError("no driver")
    with caplog.at_level(logging.WARNING):
        assert [autotuner.run(WORK, implementations.calls()).item() for _ in range(2)] == [3.0, 3.0]
    assert caplog.text.count(f"{WORK}: triton failed and is not used again: no driver") == 1


def test_memory_that_runs_out_later_is_not_the_fault_of_the_implementation() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    autotuner = Autotuner(implementations.timer)
    autotuner.run(WORK, implementations.calls())
    implementations.broken["triton"] = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        autotuner.run(WORK, implementations.calls())
    implementations.broken.clear()
    assert autotuner.run(WORK, implementations.calls()).item() == 1.0


def test_memory_is_the_reason_when_none_is_left_and_one_ran_out_of_it() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    implementations.broken = {"torch": torch.OutOfMemoryError("no memory"), "triton": UnavailableError("no driver")}
    autotuner = Autotuner(implementations.timer)
    with pytest.raises(torch.OutOfMemoryError):
        autotuner.run(WORK, implementations.calls())
    implementations.broken.clear()
    assert autotuner.run(WORK, implementations.calls()).item() == 1.0


def test_the_reason_of_the_last_is_raised_when_none_is_left() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    implementations.broken = {name: UnavailableError(f"no {name}") for name in implementations.seconds}
    autotuner = Autotuner(implementations.timer)
    with pytest.raises(UnavailableError, match="no triton"):
        autotuner.run(WORK, implementations.calls())
    implementations.broken.clear()
    assert autotuner.run(WORK, implementations.calls()).item() == 1.0
    implementations.broken = {name: UnavailableError(f"no {name}") for name in implementations.seconds}
    with pytest.raises(UnavailableError, match="no torch"):
        autotuner.run(WORK, implementations.calls())


def test_other_errors_are_not_swallowed() -> None:
    implementations = FakeImplementations(torch=3.0, triton=1.0)
    implementations.broken["triton"] = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        Autotuner(implementations.timer).run(WORK, implementations.calls())


def test_work_without_any_implementation_is_refused() -> None:
    with pytest.raises(UnavailableError, match="no implementation"):
        Autotuner(lambda _: 0.0).run(WORK, {})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_more_work_takes_longer_on_the_device() -> None:
    small, large = torch.ones(64, 64, device="cuda"), torch.ones(8192, 8192, device="cuda")
    assert device_seconds(lambda: small @ small) < device_seconds(lambda: large @ large)
