"""Flags, the YAML file, the recipe, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vigor_trainer.config import RECIPE, Arguments, parse_arguments

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

NEEDED = ("--reward-url", "http://127.0.0.1:8000", "--dataset", "addition")


def parse(*argv: str) -> Arguments:
    return parse_arguments([*NEEDED, "--use_cpu", *argv])


def test_the_recipe_is_the_default() -> None:
    _, grpo, model = parse()
    settings = vars(grpo) | vars(model)
    assert {name: settings[name] for name in RECIPE} == RECIPE


def test_a_flag_overrides_the_file_and_the_file_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-5\nbeta: 0.5\nmodel: from-file\nreward: entropy\nnum_generations: 4\n")
    for argv in (["--config", str(path)], [f"--config={path}"]):
        vigor, grpo, _ = parse(*argv, "--beta", "0.25", "--num-generations", "2")
        assert (grpo.learning_rate, grpo.beta, grpo.num_generations) == (1e-5, 0.25, 2)
        assert (vigor.model, vigor.reward) == ("from-file", "entropy")
        assert grpo.lr_scheduler_type == "cosine"


def test_the_file_may_hold_everything(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("reward_url: http://127.0.0.1:1\ndataset: addition\nuse_cpu: true\n")
    assert parse_arguments(["--config", str(path)]).vigor.reward_url == "http://127.0.0.1:1"


def test_weights_go_over_http_unless_a_broadcast_is_asked_for() -> None:
    assert parse().vigor.broadcast is None
    vigor = parse("--broadcast", "nccl", "--broadcast-host", "10.0.0.5").vigor
    assert (vigor.broadcast, vigor.broadcast_host) == ("nccl", "10.0.0.5")


def test_any_flag_of_trl_works() -> None:
    _, grpo, model = parse("--loss_type", "dr_grpo", "--model_name_or_path", "some/model", "--dtype", "bfloat16")
    assert parse("--use_peft", "--lora_r", "4").model.lora_r == 4
    assert (grpo.loss_type, model.model_name_or_path, model.dtype) == ("dr_grpo", "some/model", "bfloat16")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--rewrad", "entropy"], "not understood: --rewrad entropy"),
        (["--reward", "length"], "argument --reward: invalid choice"),
        (["--model", "a", "--model_name_or_path", "b"], "--model and --model_name_or_path are the same setting"),
        (["--load_in_4bit"], "quantized weights cannot be published"),
        (["--use_transformers_continuous_batching"], "give --bf16 false"),
        (["--eval_strategy", "epoch"], "--eval_strategy needs --eval_dataset"),
        (["--num_generations", "1"], "at least 2 generations"),
        (["--broadcast", "mpi"], "argument --broadcast: invalid choice"),
        (["--broadcast", "gloo", "--shared_directory", "x"], "--broadcast and --shared_directory are two ways"),
        (["--wait_seconds", "601"], "--wait_seconds is 601: give 0 to 600"),
        (["--dataset_size", "0"], "--dataset_size is 0: give more than 0"),
        (["--config", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor-trainer: ")
    assert complaint in line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("rewrad: entropy", "not understood: --rewrad entropy"), ("- a", "must contain a YAML mapping"), ("a: [", "")],
)
def test_a_bad_file_is_refused(
    tmp_path: Path, content: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        parse("--config", str(path))
    assert exit_info.value.code == 2
    assert complaint in capsys.readouterr().err


def test_missing_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([])
    assert "--reward_url/--reward-url, --dataset" in capsys.readouterr().err
