"""Recipes: what each holds, where its values come from, and that flags win over them."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig, ModelConfig  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_trainer.config.arguments import VigorArguments
from vigor_trainer.config.parsing import Arguments, parse_arguments
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.recipes.choice import Given, chosen_settings
from vigor_trainer.recipes.files import DIRECTORY, default_settings, recipe, recipe_names

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

SERVICE = ("--reward-url", "http://127.0.0.1:8000")
FILES = sorted(DIRECTORY.glob("*.yaml"))
BOXED = r"Let's think step by step and output the final answer within \boxed{}."
# completions of a step, group size, tokens of a completion, iterations, learning rate, beta
NUMBERS = {
    "vigor-3b-math": (384, 8, 1024, 1, 2e-6, 0.01),
    "grpo-3b-math": (384, 8, 1024, 1, 2e-6, 0.01),
    "vigor-7b-math": (896, 8, 3072, 3, 2e-6, 0.01),
    "grpo-7b-math": (896, 8, 3072, 1, 2e-6, 0.01),
    "grpo-3b-code": (384, 8, 2048, 1, 2e-6, 0.01),
    "vigor-3b-code": (384, 8, 2048, 1, 2e-6, 0.01),
    "intuitor": (896, 14, 3072, 1, 1e-6, 0.01),
}


def parse(name: str, *flags: str) -> Arguments:
    return parse_arguments([*SERVICE, "--recipe", name, "--use_cpu", *flags])


def completions_per_step(grpo: GRPOConfig) -> int:
    return grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_whole_configuration_of_a_run(name: str) -> None:
    flags = [] if "dataset" in recipe(name).settings else ["--dataset", "addition"]
    vigor, grpo, model = parse(name, *flags)
    parsed = vars(vigor) | vars(grpo) | vars(model)
    for setting, value in recipe(name).settings.items():
        assert parsed[setting] == value, setting
    assert completions_per_step(grpo) == vigor.completions_per_step == grpo.generation_batch_size
    assert completions_per_step(grpo) % (grpo.num_generations or 1) == 0
    assert vigor.recipe == name


@pytest.mark.parametrize("name", NUMBERS)
def test_the_published_recipes_have_the_published_numbers(name: str) -> None:
    vigor, grpo, _ = parse(name, "--dataset", "addition")
    learning = (grpo.num_iterations, grpo.learning_rate, grpo.beta)
    completions, group_size, max_length, *rest = NUMBERS[name]
    assert (completions_per_step(grpo), grpo.num_generations, grpo.max_completion_length) == (
        completions,
        group_size,
        max_length,
    )
    assert learning == tuple(rest)
    assert (grpo.bf16, grpo.temperature, grpo.epsilon, grpo.seed) == (True, 1.0, 0.2, 7)
    assert (grpo.lr_scheduler_type, grpo.warmup_steps, grpo.num_train_epochs) == ("cosine", 0.1, 1)
    assert (grpo.loss_type, grpo.scale_rewards) == ("bnpo", "group")
    assert vigor.max_prompt_length == (1024 if name.endswith("code") else 512)
    assert vigor.reward == {"v": ["vigor"], "g": ["verifier"], "i": ["self_certainty"]}[name[0]]
    assert (vigor.system_prompt == BOXED) == name.endswith("3b-math")
    assert vigor.system_prompt


def test_twins_differ_only_in_what_the_published_ones_differ_in() -> None:
    for run, others in (("3b-math", set[str]()), ("3b-code", set[str]()), ("7b-math", {"num_iterations"})):
        ours, twins = recipe(f"vigor-{run}").settings, recipe(f"grpo-{run}").settings
        different = {name for name in ours.keys() | twins.keys() if ours.get(name) != twins.get(name)}
        assert different == {"reward", "vigor_rank", "vigor_sqrt_length", "output_dir", *others}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_says_where_it_comes_from(path: Path) -> None:
    _, _, settings = path.read_text().partition("settings:\n")
    values = [line for line in settings.splitlines() if not line.strip().startswith("#")]
    assert values
    assert [line for line in values if not re.fullmatch(r"  \w+: .+ # .+", line)] == []
    known = {field.name for kind in (VigorArguments, GRPOConfig, ModelConfig) for field in fields(kind)}
    assert set(yaml.safe_load(path.read_text())["settings"]) - known == set()


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("recipe: vigor-3b-math\nlearning_rate: 1e-5\nbeta: 0.5\n")
    vigor, grpo, _ = parse_arguments([*SERVICE, "--use_cpu", "--config", str(path), "--beta", "0.25"])
    assert (grpo.learning_rate, grpo.beta, grpo.max_completion_length) == (1e-5, 0.25, 1024)
    assert vigor.recipe == "vigor-3b-math"


def test_another_dataset_and_another_name_of_the_model_replace_the_recipes_own() -> None:
    assert parse("vigor-3b-math").vigor.prompt_column == "problem"
    vigor, _, model = parse("vigor-3b-math", "--dataset", "mine.jsonl", "--model_name_or_path", "some/model")
    assert (vigor.dataset, vigor.prompt_column, vigor.answer_column) == ("mine.jsonl", None, None)
    assert (vigor.model, model.model_name_or_path) == (None, "some/model")


def test_the_completions_of_a_step_are_divided_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert chosen_settings(Given(recipe="vigor-3b-math"))["gradient_accumulation_steps"] == 32
    given = Given(recipe="vigor-3b-math", per_device_train_batch_size=16)
    assert chosen_settings(given)["gradient_accumulation_steps"] == 8
    with pytest.raises(
        UnsupportedSettingError, match=r"--completions_per_step 896 is not a multiple of 4 .* × 3 \(proc"
    ):
        chosen_settings(Given(recipe="vigor-7b-math"))


def test_steps_of_accumulation_win_over_completions_of_a_step() -> None:
    grpo = parse("vigor-3b-math", "--gradient_accumulation_steps", "4").grpo
    assert grpo.gradient_accumulation_steps == 4
    grpo = parse("vigor-3b-math", "--completions_per_step", "16").grpo
    assert grpo.gradient_accumulation_steps == 4


@pytest.mark.parametrize("name", ["list", "vigor-3b", "_default", "../config"])
def test_an_unknown_recipe_is_refused_in_one_line_that_lists_all(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(name)
    assert exit_info.value.code == 2
    names = (
        "grpo-3b-code, grpo-3b-math, grpo-7b-math, intuitor, small, tiny, vigor-3b-code, vigor-3b-math, vigor-7b-math"
    )
    assert (
        capsys.readouterr().err == f"vigor-trainer: --recipe {name}: give one of {names} (see vigor-trainer --help)\n"
    )


def test_without_a_recipe_the_published_settings_count_but_for_the_batch() -> None:
    grpo = parse_arguments([*SERVICE, "--dataset", "addition"], has_gpu=True).grpo
    published = recipe("vigor-3b-math").settings
    assert {name: published[name] for name in default_settings()} == default_settings() | {
        "output_dir": published["output_dir"]
    }
    assert (completions_per_step(grpo), grpo.num_generations) == (8, 8)
