"""`run.json`: what a run is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.client.fake_service import MODEL
from tests.trainer.example_records import example_record
from vigor_trainer.config.parsing import parse_arguments
from vigor_trainer.description import describe_run, shown_command
from vigor_trainer.monitoring.run_files import RunFiles
from vigor_trainer.monitoring.run_info import INFO_FILE, RunInfo, read_run_info, write_run_info

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def example_info(*flags: str) -> RunInfo:
    needed = ["--reward_url", "http://user:s3cret@127.0.0.1:1", "--dataset", "addition", "--use_cpu"]
    return describe_run(parse_arguments([*needed, *flags]), "some/model", MODEL)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    info = example_info("--reward", "vigor", "random", "--reward_weights", "0.5", "0.25", "--vigor_rank", "false")
    write_run_info(tmp_path / "run", info)
    assert read_run_info(tmp_path / "run") == info
    assert (info.reward_weights, info.vigor_rank, info.vigor_sqrt_length) == ([0.5, 0.25], False, True)
    assert info.service.num_measured_parameters == MODEL.num_measured_parameters
    assert read_run_info(tmp_path) is None


def test_no_address_and_no_key_is_written(tmp_path: Path) -> None:
    write_run_info(tmp_path, example_info("--api_key_file", "the/key"))
    written = (tmp_path / INFO_FILE).read_text()
    assert "s3cret" not in written
    assert "the/key" not in written


def test_data_machine_command_and_date_are_written(tmp_path: Path) -> None:
    needed = ["--reward_url", "http://127.0.0.1:1", "--dataset", "addition", "--use_cpu", "--learning_rate", "1e-3"]
    arguments = parse_arguments([*needed, "--lr_scheduler_type", "constant"])
    datasets = {"train_dataset": range(40), "eval_dataset": range(3)}
    write_run_info(tmp_path, describe_run(arguments, "some/model", MODEL, datasets, "vigor-trainer --seed 7"))
    info = read_run_info(tmp_path)
    assert info is not None
    assert (info.num_prompts, info.num_held_out, info.command) == (40, 3, "vigor-trainer --seed 7")
    assert (info.lr_scheduler_type, info.learning_rate, info.bf16) == ("constant", 1e-3, False)
    assert info.machine is not None
    assert info.machine.num_cores >= 1
    assert info.machine.processor
    assert info.machine.accelerators == []
    assert info.started is not None
    assert datetime.fromisoformat(info.started).utcoffset() == timedelta(0)


def test_the_description_of_a_version_with_fewer_fields_is_read(tmp_path: Path) -> None:
    write_run_info(tmp_path, example_info())
    written = json.loads((tmp_path / INFO_FILE).read_text())
    for later in ("machine", "command", "started", "num_prompts"):
        del written[later]
    (tmp_path / INFO_FILE).write_text(json.dumps(written))
    info = read_run_info(tmp_path)
    assert info is not None
    assert (info.machine, info.command, info.started, info.num_prompts) == (None, None, None, None)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--seed", "7", "--dataset", "my sums.jsonl"], "--seed 7 --dataset 'my sums.jsonl'"),
        (["--reward-url", "http://user:s3cret@host:1", "--use_cpu"], "--reward-url URL --use_cpu"),
        (["--reward_url=http://host:1"], "--reward_url=URL"),
        (["--api-key-file", "/home/me/the.key"], "--api-key-file KEY_FILE"),
        (["--api_key_file=/home/me/the.key", "--beta", "-0.5"], "--api_key_file=KEY_FILE --beta -0.5"),
        (["--hub_token", "hf_s3cret"], "--hub_token SECRET"),
        (["--dataset", "https://me:s3cret@host/x.jsonl"], "--dataset https://host/x.jsonl"),
        (["--reward", "vigor", "random"], "--reward vigor random"),
    ],
)
def test_the_command_is_shown_without_addresses_and_keys(argv: list[str], shown: str) -> None:
    assert shown_command("vigor-trainer", argv) == f"vigor-trainer {shown}"


def test_a_run_that_does_not_begin_leaves_what_an_earlier_one_was(tmp_path: Path) -> None:
    info = example_info()
    write_run_info(tmp_path, info)
    files = RunFiles(tmp_path)
    files.describe(replace(info, seed=1))
    assert read_run_info(tmp_path) == info
    files.append(example_record(0), [])
    assert read_run_info(tmp_path) == replace(info, seed=1)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"service": {}}', '{"service": 1}'])
def test_a_file_that_is_no_description_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / INFO_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"run\.json: not a description of a run"):
        read_run_info(tmp_path)
