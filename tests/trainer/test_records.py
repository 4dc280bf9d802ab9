"""The file of rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.example_records import example_record
from vigor_trainer.records import RECORDS_FILE, RecordFile, read_records


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / "run", keep=False)
    written = [example_record(0), example_record(1, accuracy=None)]
    for record in written:
        records.append(record)
    assert read_records(tmp_path / "run") == written


def test_a_new_run_starts_a_new_file_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    RecordFile(tmp_path, keep=False).append(example_record(0))
    RecordFile(tmp_path, keep=True).append(example_record(1))
    assert [record.step for record in read_records(tmp_path)] == [0, 1]
    RecordFile(tmp_path, keep=False)
    assert read_records(tmp_path) == []


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    RecordFile(tmp_path, keep=False).append(example_record(0))
    with (tmp_path / RECORDS_FILE).open("a") as file:
        file.write('{"step": 1, "mo')
    assert [record.step for record in read_records(tmp_path)] == [0]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORDS_FILE).write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"rounds\.jsonl:1: not a record"):
        read_records(tmp_path)
