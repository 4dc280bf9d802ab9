"""Reading runs for the report: what is there, and what is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.example_records import example_completion, example_record
from tests.trainer.reports.example_runs import write_run
from vigor_trainer.errors import InvalidRunError
from vigor_trainer.monitoring.completions import COMPLETIONS_FILE
from vigor_trainer.monitoring.records import RECORDS_FILE
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.reports.runs import Run, read_runs


def read(directory: Path) -> Run:
    return read_runs([directory])[0]


def test_a_run_has_its_groups_in_order_and_what_each_reward_says(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", num_steps=3, num_groups=2, size=4))
    assert [group.step for group in run.groups] == [0, 0, 1, 1, 2, 2]
    assert {len(group.samples) for group in run.groups} == {4}
    assert (run.name, run.rewards) == ("run", ["vigor"])
    sample = run.groups[0].samples[0]
    assert sample.values["entropy"] == -0.75, "a small entropy is good"
    assert sample.values["vigor"] == 1 - 2 * (sample.rank - 1) / 3, "the run's own reward, not its signal"


def test_rounds_of_one_step_are_not_mixed_and_those_of_evaluation_are_left_out(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    for mode in ("train", "eval", "train"):
        pair = [example_completion(0, index=index, mode=mode) for index in range(2)]
        files.append(example_record(0, num_completions=2, mode=mode), pair)
    run = read(tmp_path / "run")
    assert [len(group.samples) for group in run.groups] == [2, 2]
    assert len(run.rounds) == 2


def test_without_norms_completions_are_ranked_by_the_runs_first_reward(tmp_path: Path) -> None:
    group = [
        example_completion(0, index=index, rank=None, scaled_grad_norm=None, rewards={"entropy": reward})
        for index, reward in enumerate([0.0, 1.0, 1.0])
    ]
    RunFiles(tmp_path / "run").append(example_record(0, num_completions=3), group)
    run = read(tmp_path / "run")
    assert [sample.rank for sample in run.groups[0].samples] == [3.0, 1.5, 1.5]


def test_a_round_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", num_steps=2, num_groups=1, size=4)
    whole = read(directory)
    lines = (directory / COMPLETIONS_FILE).read_text().splitlines(keepends=True)
    with (directory / COMPLETIONS_FILE).open("a") as file:
        file.write("".join(lines[:3]) + lines[3][:50])  # of the next round, which rounds.jsonl does not have yet
    with (directory / RECORDS_FILE).open("a") as file:
        file.write('{"step": 2, "mode"')
    assert read(directory) == whole


def test_runs_have_the_shortest_end_of_their_path_that_tells_them_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, num_steps=1) for name in ("a/run", "b/run")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    with pytest.raises(InvalidRunError, match="is given twice: give each run once"):
        read_runs([paths[0], tmp_path / "b" / ".." / "a" / "run"])


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def keep(name: str, num_lines: int) -> Callable[[Path], None]:
    def shorten(directory: Path) -> None:
        lines = (directory / name).read_text().splitlines(keepends=True)
        (directory / name).write_text("".join(lines[:num_lines]))

    return shorten


def spoil(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text('{"step": 0}\n')


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (remove(RECORDS_FILE), "has no rounds.jsonl: give the --output_dir of a run"),
        (remove(COMPLETIONS_FILE), "has no completions.jsonl: give the --output_dir of a run"),
        (keep(RECORDS_FILE, 0), "has no training round yet: wait for the first step"),
        (keep(COMPLETIONS_FILE, 20), "has 20 completions, rounds.jsonl counts 32: .* copy both files again"),
        (spoil(RECORDS_FILE), "rounds.jsonl:1: not a record of this version of vigor-trainer; show the run with"),
        (spoil(COMPLETIONS_FILE), "completions.jsonl:1: not a record of this version of vigor-trainer; show the run"),
    ],
)
def test_what_is_missing_or_of_another_version_is_named(
    tmp_path: Path, break_it: Callable[[Path], object], said: str
) -> None:
    directory = write_run(tmp_path / "run", num_steps=2, num_groups=2, size=8)
    break_it(directory)
    with pytest.raises(InvalidRunError, match=f"^{re.escape(str(directory))}.*{said}"):
        read(directory)


def test_a_place_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRunError, match="nowhere is no directory"):
        read(tmp_path / "nowhere")


def test_the_log_is_that_of_the_newest_whole_state(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", num_steps=1)
    assert read(directory).log == []
    for step, text in ((1, None), (2, None), (3, '{"log_history": [{"st')):
        history = [{"step": number, "kl": 0.5 * number} for number in range(1, step + 1)]
        (directory / f"checkpoint-{step}").mkdir()
        (directory / f"checkpoint-{step}" / "trainer_state.json").write_text(
            text or json.dumps({"log_history": history})
        )
    assert read(directory).log == [{"step": 1, "kl": 0.5}, {"step": 2, "kl": 1.0}]
