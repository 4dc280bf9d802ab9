"""The file of completions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.example_records import example_completion, example_record
from vigor_trainer.monitoring.completions import COMPLETIONS_FILE, read_completions
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.monitoring.records import read_records
from vigor_trainer.monitoring.run_files import RunFiles


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    written = [example_completion(0), example_completion(0, prompt=[{"role": "user", "content": "1+1"}], rank=None)]
    RunFiles(tmp_path).append(example_record(0), written)
    assert list(read_completions(tmp_path)) == written


def test_a_resumed_run_has_each_completion_and_each_round_once(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for step in range(4):
        files.append(example_record(step), [example_completion(step, index=index) for index in range(2)])
    with (tmp_path / COMPLETIONS_FILE).open("a") as torn:
        torn.write('{"step": 3, "mo')
    files = RunFiles(tmp_path, Resumption(2))
    for step in (2, 3):
        files.append(example_record(step), [example_completion(step, index=index) for index in range(2)])
    assert [(each.step, each.index) for each in read_completions(tmp_path)] == [
        (step, index) for step in range(4) for index in range(2)
    ]
    assert [record.step for record in read_records(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"step": 1}'])
def test_a_line_that_is_no_record_is_named_before_a_run_goes_on(tmp_path: Path, line: str) -> None:
    (tmp_path / COMPLETIONS_FILE).write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"completions\.jsonl:1: not a record"):
        RunFiles(tmp_path, Resumption(1))


def test_what_an_earlier_run_wrote_stays_until_the_new_one_has_something(tmp_path: Path) -> None:
    RunFiles(tmp_path).append(example_record(0), [example_completion(0)])
    new = RunFiles(tmp_path)
    assert len(list(read_completions(tmp_path))) == 1
    new.append(example_record(7), [replace(example_completion(7), index=1)])
    assert [(each.step, each.index) for each in read_completions(tmp_path)] == [(7, 1)]
