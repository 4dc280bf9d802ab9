"""Where the seconds of a step go, by a clock that a test turns."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.trainer.example_records import example_record
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.step_times import StepRecord, StepTimer, read_steps


class Clock:
    """Stands still until it is told that time has passed."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def timed() -> tuple[Clock, list[StepRecord], StepTimer]:
    clock, records = Clock(), list[StepRecord]()
    return clock, records, StepTimer(records.append, clock=clock)


def test_a_part_inside_of_another_counts_once() -> None:
    clock, records, timer = timed()
    timer.begin(0)
    with timer.measure("optimize"):
        with timer.measure("prepare"):
            clock.advance(5)
        clock.advance(2)
    clock.advance(1)  # clipping and the update
    timer.extend("optimize")
    with timer.measure("evaluate"):
        clock.advance(4)
    clock.advance(0.5)
    timer.end()
    assert records == [StepRecord(step=0, seconds=12.5, prepare_seconds=5, optimize_seconds=3, evaluate_seconds=4)]


def test_steps_follow_each_other_without_a_gap_and_what_was_before_them_does_not_count() -> None:
    clock, records, timer = timed()
    with timer.measure("evaluate"):  # before the first step
        clock.advance(7)
    for step in range(2):
        timer.begin(step)
        with timer.measure("optimize"):
            clock.advance(step + 1)
        clock.advance(10)
    timer.end()
    timer.end()
    assert [(record.step, record.seconds, record.optimize_seconds) for record in records] == [(0, 11, 1), (1, 12, 2)]
    assert sum(record.evaluate_seconds for record in records) == 0


def test_a_part_that_fails_is_still_measured() -> None:
    clock, records, timer = timed()
    timer.begin(0)
    with suppress(OSError), timer.measure("prepare"):
        clock.advance(3)
        raise OSError
    timer.end()
    assert records[0].prepare_seconds == 3


def test_a_new_run_has_no_steps_of_an_earlier_one(tmp_path: Path) -> None:
    step = StepRecord(step=0, seconds=1, prepare_seconds=0, optimize_seconds=0, evaluate_seconds=0)
    first = RunFiles(tmp_path)
    first.append(example_record(0), [])
    first.append_step(step)
    assert read_steps(tmp_path) == [step]
    RunFiles(tmp_path).append(example_record(0), [])
    assert read_steps(tmp_path) == []
