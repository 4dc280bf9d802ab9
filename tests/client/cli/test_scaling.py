"""Waiting until the engines that were asked for are up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

import pytest

from vigor_client.cli.scaling import wait_until_up
from vigor_client.errors import NotReadyError
from vigor_client.schemas.engines import EngineList, EngineState


def engines(num_up: int, num_wanted: int) -> EngineList:
    return EngineList(
        engines=[
            EngineState(
                number=number,
                is_up=number < num_up,
                weight_version=0 if number < num_up else None,
                num_batches=0,
                busy_seconds=0.0,
                num_restarts=0,
            )
            for number in range(num_wanted)
        ]
    )


class Waited:
    """Answers one after the other, on a clock that only sleeping moves."""

    def __init__(self, *answers: EngineList) -> None:
        self.answers: Iterator[EngineList] = chain(answers[:-1], repeat(answers[-1]))
        self.seconds = 0.0
        self.lines: list[str] = []

    def __call__(self, timeout_seconds: float) -> float:
        return wait_until_up(
            lambda: next(self.answers),
            self.lines.append,
            timeout_seconds,
            clock_seconds=lambda: self.seconds,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_it_waits_until_all_are_up_and_says_whenever_one_has_come() -> None:
    waited = Waited(engines(1, 3), engines(1, 3), engines(2, 3), engines(3, 3))
    assert waited(600.0) == 1.5
    assert waited.lines == ["1 of 3 engines are up", "2 of 3 engines are up"]


def test_it_does_not_wait_where_all_are_up() -> None:
    waited = Waited(engines(2, 2))
    assert waited(0.0) == 0.0
    assert waited.lines == []


def test_engines_that_do_not_come_in_time_are_an_error_that_says_how_many_did() -> None:
    waited = Waited(engines(1, 2))
    with pytest.raises(NotReadyError, match=r"^1 of 2 engines are up after 3 s; the service continues"):
        waited(3.0)
    assert waited.seconds <= 3.0
