"""Flags, the YAML file, the defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vigor_trainer.config.parsing import CPU_SETTINGS, Arguments, describe_cpu_settings, parse_arguments
from vigor_trainer.recipes.files import default_settings

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

NEEDED = ("--reward-url", "http://127.0.0.1:8000", "--dataset", "addition")


def parse(*argv: str) -> Arguments:
    return parse_arguments([*NEEDED, "--use_cpu", *argv])


def settings_of(arguments: Arguments) -> dict[str, object]:
    return vars(arguments.grpo) | vars(arguments.model)


def test_a_run_without_a_recipe_has_the_defaults_of_their_file() -> None:
    settings = settings_of(parse_arguments(NEEDED, has_gpu=True))
    assert {name: settings[name] for name in default_settings()} == default_settings()
    assert settings["use_cpu"] is False


def test_without_a_gpu_what_a_cpu_needs_is_the_default() -> None:
    for arguments in (parse_arguments(NEEDED, has_gpu=False), parse_arguments([*NEEDED, "--use_cpu"], has_gpu=True)):
        settings = settings_of(arguments)
        expected = default_settings() | CPU_SETTINGS
        assert {name: settings[name] for name in expected} == expected
        assert describe_cpu_settings(arguments.grpo) == (
            "training on the CPU with --bf16 false --beta 0 --max_completion_length 48 "
            "(a flag, the --config file or a recipe overrides each)"
        )


def test_without_a_gpu_flags_and_the_file_still_win(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("beta: 0.5\nmax_completion_length: 16\n")
    grpo = parse_arguments([*NEEDED, "--config", str(path), "--bf16", "true", "--beta", "0.25"], has_gpu=False).grpo
    assert (grpo.bf16, grpo.beta, grpo.max_completion_length, grpo.use_cpu) == (True, 0.25, 16, True)
    assert describe_cpu_settings(grpo) == "training on the CPU"


def test_a_run_on_a_gpu_has_nothing_to_say_of_a_cpu() -> None:
    assert describe_cpu_settings(parse_arguments(NEEDED, has_gpu=True).grpo) is None


def test_a_flag_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-5\nbeta: 0.5\nmodel: from-file\nreward: entropy\nnum_generations: 4\n")
    for argv in (["--config", str(path)], [f"--config={path}"]):
        vigor, grpo, _ = parse(*argv, "--beta", "0.25", "--num-generations", "2")
        assert (grpo.learning_rate, grpo.beta, grpo.num_generations) == (1e-5, 0.25, 2)
        assert (vigor.model, vigor.reward) == ("from-file", ["entropy"])
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
        (["--rewrad", "entropy"], "unknown option --rewrad entropy; did you mean --reward?"),
        (["--reward", "length"], "--reward length: give one or more of vigor, self_certainty"),
        (["--reward", "vigor", "vigor"], "--reward is vigor vigor: give each reward once"),
        (["--min_spread", "-1"], "--min_spread is -1: give 0 or more"),
        (["--model", "a", "--model_name_or_path", "b"], "--model and --model_name_or_path are the same setting"),
        (["--load_in_4bit"], "quantized weights cannot be published"),
        (["--use_transformers_continuous_batching", "--bf16", "true"], "give --bf16 false"),
        (["--fp16", "true"], "--fp16 needs a GPU: leave it out"),
        (["--stop_on_collapse", "--save_strategy", "no"], "--stop_on_collapse needs checkpoints to return to: give"),
        (["--eval_strategy", "epoch"], "--eval_strategy needs --eval_dataset"),
        (["--num_generations", "1"], "at least 2 generations"),
        (["--broadcast", "mpi"], "argument --broadcast: invalid choice"),
        (["--broadcast", "gloo", "--shared_directory", "x"], "--broadcast and --shared_directory are two ways"),
        (["--wait_seconds", "601"], "--wait_seconds is 601: give 0 to 600"),
        (["--dataset_size", "0"], "--dataset_size is 0: give 1 or more"),
        (["--max_prompt_length", "0"], "--max_prompt_length is 0: give 1 or more"),
        (["--completions_per_step", "0"], "--completions_per_step is 0: give 1 or more"),
        (["--completions_per_step", "12"], "--completions_per_step 12 is not a multiple of 8"),
        (["--recipe"], "argument --recipe: expected one argument"),
        (["--config", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
        (["--config"], "--config needs a file"),
        (["--overlong_prompts", "cut"], "argument --overlong_prompts/--overlong-prompts: invalid choice"),
        (["--load_best_model_at_end", "true"], "- Save strategy: SaveStrategy.STEPS"),
        (["--deepspeed", "nowhere.json"], "deepspeed"),
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
    [
        ("rewrad: entropy", "unknown option --rewrad entropy; did you mean --reward?"),
        ("- a", "must contain a YAML mapping"),
        ("a: [", ""),
    ],
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
