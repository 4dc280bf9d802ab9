"""Chooses the settings of a recipe from the command line; flags and the YAML file may override them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.recipes.files import recipe

OF_A_DATASET = ("dataset_config", "dataset_split", "prompt_column", "answer_column", "tests_column")
COMPLETIONS_PER_DEVICE = 8
"""Default of TRL's `per_device_train_batch_size`."""


@dataclass(kw_only=True)
class Given:
    """The values given by flags and the YAML file that a recipe's settings depend on. None means not given."""

    recipe: str | None = None
    dataset: str | None = None
    model_name_or_path: str | None = None
    completions_per_step: int | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None


def chosen_settings(given: Given) -> dict[str, Any]:
    """Return the settings of the recipe, if one is given; for another dataset, without those that read its own.

    If a number of completions per step is given, gradients are accumulated until all processes together have as many.

    Raises:
        UnsupportedSettingError: the recipe does not exist, or the completions cannot be divided among the processes.
    """
    settings = dict(recipe(given.recipe).settings) if given.recipe is not None else {}
    if given.dataset not in (None, settings.get("dataset")):
        settings = {name: value for name, value in settings.items() if name not in OF_A_DATASET}
    if given.model_name_or_path is not None:
        settings.pop("model", None)
    completions = given.completions_per_step or settings.get("completions_per_step")
    if completions is not None and given.gradient_accumulation_steps is None:
        per_device = given.per_device_train_batch_size or settings.get("per_device_train_batch_size")
        settings["gradient_accumulation_steps"] = _accumulation_steps(completions, per_device or COMPLETIONS_PER_DEVICE)
    return settings


def _accumulation_steps(completions: int, per_device: int) -> int:
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun and accelerate set it
    at_once = per_device * num_processes
    if completions < at_once or completions % at_once:
        raise UnsupportedSettingError(
            f"--completions_per_step {completions} is not a multiple of {per_device} (--per_device_train_batch_size) × "
            f"{num_processes} (processes)"
        )
    return completions // at_once
