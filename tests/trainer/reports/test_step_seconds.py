"""The seconds of a step: their parts add up to what was measured, whatever was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.example_records import example_completion, example_record
from tests.trainer.reports.example_runs import write_run
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.step_times import StepRecord
from vigor_trainer.reports.runs import read_runs
from vigor_trainer.reports.step_seconds import PARTS, mean_step_seconds, parts_of_step

STEP = StepRecord(step=0, seconds=20.0, prepare_seconds=12.0, optimize_seconds=5.0, evaluate_seconds=2.0)


def test_the_parts_of_a_step_add_up_to_its_wall_time_and_the_rest_is_other() -> None:
    record = example_record(0, score_queue_seconds=0.5, score_compute_seconds=3.0)
    parts = parts_of_step(STEP, [record])
    assert list(parts.values()) == [6.0, 0.5, 0.5, 3.0, 0.5, 1.5, 5.0, 2.0, 1.0]
    assert sum(parts.values()) == STEP.seconds
    assert tuple(parts) == PARTS


def test_a_service_that_claims_more_than_the_request_took_makes_no_part_negative() -> None:
    parts = parts_of_step(STEP, [example_record(0, score_queue_seconds=9.0, score_compute_seconds=3.5)])
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == STEP.seconds


def test_a_step_without_a_round_of_its_own_has_no_sampling() -> None:
    reused = StepRecord(step=1, seconds=6.0, prepare_seconds=0.5, optimize_seconds=5.0, evaluate_seconds=0.0)
    parts = parts_of_step(reused, [])
    assert parts["sampling"] == 0
    assert sum(parts.values()) == reused.seconds


def test_the_means_are_those_of_all_recorded_steps(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    for step in range(2):
        timing = {"generate_seconds": 1.0 + 2.0 * step, "publish_seconds": 4.0 * step, "score_compute_seconds": 1.0}
        files.append(example_record(step, num_completions=1, **timing), [example_completion(step)])
        files.append_step(
            StepRecord(step=step, seconds=20.0 + step, prepare_seconds=9.0, optimize_seconds=5.0, evaluate_seconds=0.0)
        )
    seconds = mean_step_seconds(read_runs([tmp_path / "run"])[0])
    assert seconds is not None
    assert (seconds.num_steps, seconds.wall, seconds.publish) == (2, 20.5, 2.0)
    assert seconds.parts["sampling"] == 2.0
    assert sum(seconds.parts.values()) == pytest.approx(seconds.wall)


def test_a_run_of_a_version_that_did_not_record_steps_has_none(tmp_path: Path) -> None:
    assert mean_step_seconds(read_runs([write_run(tmp_path / "run", num_steps=1)])[0]) is None
