"""Which checkpoint `--resume_from_checkpoint` means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.resume import Checkpoint, find_checkpoint


def save(run: Path, step: int, *, state: str | None = None) -> Path:
    directory = run / f"checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "trainer_state.json").write_text(state or json.dumps({"global_step": step}))
    return directory


@pytest.mark.parametrize("setting", [None, False, "false", "False"])
def test_without_a_checkpoint_a_run_is_new(setting: str | bool | None, tmp_path: Path) -> None:
    save(tmp_path, 2)
    assert find_checkpoint(setting, tmp_path) is None


@pytest.mark.parametrize("setting", [True, "true", "True", "TRUE"])
def test_true_is_the_last_checkpoint_by_number(setting: str | bool, tmp_path: Path) -> None:
    save(tmp_path, 9)
    last = save(tmp_path, 10)
    assert find_checkpoint(setting, tmp_path) == Checkpoint(last, 10)


def test_a_checkpoint_that_a_run_was_killed_in_is_not_the_last(tmp_path: Path) -> None:
    whole = save(tmp_path, 2)
    save(tmp_path, 4, state='{"global_step": 4, "log_his')
    (tmp_path / "checkpoint-6").mkdir()
    assert find_checkpoint("true", tmp_path) == Checkpoint(whole, 2)


@pytest.mark.parametrize("directory", ["", "nowhere"])
def test_without_a_whole_checkpoint_true_is_refused(directory: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-6").mkdir()
    with pytest.raises(
        UnsupportedSettingError, match=r"no complete checkpoint in .*; leave the flag out to start a new run"
    ):
        find_checkpoint("true", tmp_path / directory)


def test_a_directory_is_taken_by_its_name(tmp_path: Path) -> None:
    directory = save(tmp_path / "elsewhere", 3)
    assert find_checkpoint(str(directory), tmp_path) == Checkpoint(directory, 3)


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"global_step": "3"}', "\udcff"])
def test_what_is_no_checkpoint_is_named(state: str, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint-3"
    directory.mkdir()
    (directory / "trainer_state.json").write_bytes(state.encode(errors="surrogateescape"))
    with pytest.raises(
        UnsupportedSettingError, match=f"{directory} is not a checkpoint: it has no readable trainer_state.json"
    ):
        find_checkpoint(str(directory), tmp_path)
