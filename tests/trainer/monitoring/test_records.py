"""The file of rounds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.trainer.example_records import example_record
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.monitoring.records import RECORDS_FILE, read_records, round_file


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    records = round_file(tmp_path / "run")
    written = [example_record(0), example_record(1, accuracy=None)]
    for record in written:
        records.append(record)
    assert read_records(tmp_path / "run") == written


def test_a_new_run_starts_a_new_file_with_its_first_record(tmp_path: Path) -> None:
    round_file(tmp_path).append(example_record(0))
    new = round_file(tmp_path)
    assert [record.step for record in read_records(tmp_path)] == [0], "a run that cannot begin changes nothing"
    new.append(example_record(7))
    assert [record.step for record in read_records(tmp_path)] == [7]


def rounds_after(tmp_path: Path, *, resumed_step: int, evaluates_first: bool = False) -> list[tuple[str, int]]:
    """What stands before and after a run goes on: two rounds and an evaluation for each of the steps 0 to 4."""
    before = round_file(tmp_path)
    for step in range(5):
        for mode in ("eval", "train", "train"):
            before.append(example_record(step, mode=mode))
    round_file(tmp_path, Resumption(resumed_step, evaluates_first)).append(example_record(99))
    return [(record.mode, record.step) for record in read_records(tmp_path)]


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    kept = [(mode, step) for step in range(3) for mode in ("eval", "train", "train")]
    assert rounds_after(tmp_path, resumed_step=3) == [*kept, ("eval", 3), ("train", 99)]


def test_an_evaluation_that_comes_again_is_dropped(tmp_path: Path) -> None:
    assert ("eval", 3) not in rounds_after(tmp_path, resumed_step=3, evaluates_first=True)


def test_a_torn_line_is_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    round_file(tmp_path).append(example_record(0))
    with (tmp_path / RECORDS_FILE).open("a") as file:
        file.write('{"step": 1, "mo')
    round_file(tmp_path, Resumption(1)).append(example_record(1))
    assert [record.step for record in read_records(tmp_path)] == [0, 1]


def test_the_records_of_a_version_with_fewer_fields_are_read(tmp_path: Path) -> None:
    written = asdict(example_record(0))
    for later in ("score_queue_seconds", "score_compute_seconds", "norm_spread"):
        del written[later]
    (tmp_path / RECORDS_FILE).write_text(json.dumps(written) + "\n")
    assert read_records(tmp_path) == [example_record(0)]


def test_records_of_another_version_are_named_before_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / RECORDS_FILE).write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"rounds\.jsonl:1: not a record of this version"):
        round_file(tmp_path, Resumption(1))


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    round_file(tmp_path).append(example_record(0))
    with (tmp_path / RECORDS_FILE).open("a") as file:
        file.write('{"step": 1, "mo')
    assert [record.step for record in read_records(tmp_path)] == [0]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORDS_FILE).write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"rounds\.jsonl:1: not a record"):
        read_records(tmp_path)
