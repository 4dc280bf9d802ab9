"""Waiting for the host of a virtual machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.host import settle, stolen_part, stolen_seconds, stolen_while_busy


def test_it_waits_until_the_host_leaves_the_machine_alone() -> None:
    stolen: Iterator[float] = iter([0.3, 0.02, 0.01, 0.3])
    settle(60, probe=lambda: next(stolen))
    assert next(stolen) == 0.3


def test_it_does_not_wait_for_longer_than_it_may() -> None:
    probes: list[float] = []

    def never_quiet() -> float:
        probes.append(0.5)
        return probes[-1]

    settle(0, probe=never_quiet)
    assert probes == []
    settle(0.05, probe=never_quiet)
    assert probes


def test_what_the_host_took_is_the_eighth_number(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  6365539 2316 1142133 5634090 23683 0 13687 21900 1 2\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert stolen_seconds(stat) == pytest.approx(219)


def test_a_part_is_never_more_than_all() -> None:
    assert 0 <= stolen_while_busy(0.1) <= 1
    assert stolen_part(stolen_seconds(), 10.0) <= 1
