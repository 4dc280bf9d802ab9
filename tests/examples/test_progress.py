"""The time to expect: computed from what is done, and not told before enough is."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from examples.demo.expectation import training_seconds_left
from examples.progress import about, progress, seconds_to_go
from tests.trainer.example_records import example_record
from tests.trainer.reports.example_runs import example_evaluation
from vigor_trainer.monitoring.evaluations import evaluation_file
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.step_times import StepRecord


def test_the_rest_takes_as_long_per_step_as_what_is_done() -> None:
    assert seconds_to_go(elapsed=10.0, num_done=20, total=100) == 40.0
    assert seconds_to_go(elapsed=10.0, num_done=100, total=100) == 0.0


def test_no_time_is_told_before_a_twentieth_is_done() -> None:
    assert seconds_to_go(elapsed=10.0, num_done=4, total=100) is None
    assert seconds_to_go(elapsed=10.0, num_done=0, total=2) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "about 5 s"), (42, "about 40 s"), (89, "about 90 s"), (100, "about 1.7 min"), (3000, "about 50 min")],
)
def test_a_time_is_told_no_more_exactly_than_it_is_known(seconds: float, said: str) -> None:
    assert about(seconds) == said


def test_training_takes_the_steps_and_the_evaluations_that_are_left(tmp_path: Path) -> None:
    files, evaluations = RunFiles(tmp_path), evaluation_file(tmp_path)
    evaluations.append(example_evaluation(0, Estimate(0.5, 0.5, 0.5)))  # in 1 s
    for step, seconds in enumerate((9.0, 2.0, 2.0)):
        assert training_seconds_left(tmp_path, num_steps=10, eval_every=4) is None or step > 1
        files.append(example_record(step), [])
        files.append_step(
            StepRecord(step=step, seconds=seconds, prepare_seconds=1, optimize_seconds=0.5, evaluate_seconds=0)
        )
    steps, later_evaluations = 7 * 2.0, 3 * 1.0  # after 4, 8 and 10 steps
    assert training_seconds_left(tmp_path, num_steps=10, eval_every=4) == steps + later_evaluations


@pytest.mark.parametrize(("to_go", "said"), [(None, "about 5 s to go"), (300.0, "about 5.0 min to go")])
def test_the_display_tells_the_time_to_go(to_go: float | None, said: str) -> None:
    console = Console(width=120)
    with console.capture() as shown, progress(console) as display:
        task = display.add_task("training", total=10)
        display.update(task, completed=5, to_go=to_go)
    assert said in shown.get()
