"""Checks of the command line that need no slow import: they run before torch and TRL are imported.

It reads a few flags, which have the same names in all commands, and leaves all others to the later parsing.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from vigor_client import ModelSourceError
from vigor_client.models.model_source import nearest_file, require_model
from vigor_trainer.connection import open_client
from vigor_trainer.data.tasks import require_task
from vigor_trainer.errors import InvalidModelError, InvalidTaskError, UnsupportedSettingError

_MODELS = ("model", "model_name_or_path")
_TASKS = ("dataset", "eval_dataset")
_CONNECTION = ("reward_url", "api_key_file")


def check_command_line(argv: Sequence[str]) -> None:
    """Return if the model, datasets, URL and files given by flags or the `--config` file can exist.

    Raises:
        UnsupportedSettingError, InvalidModelError, InvalidTaskError: one cannot exist; names the flag and what to give.
    """
    named = _named(argv)
    for flag in _MODELS:
        if model := getattr(named, flag):
            _check_model(flag, model)
    for flag in _TASKS:
        if task := getattr(named, flag):
            _check_task(flag, task)
    if named.reward_url:
        open_client(named.reward_url, api_key_file=named.api_key_file).close()


def _named(argv: Sequence[str]) -> Namespace:
    """Return the values of the few flags; None for those that neither a flag nor the file gives."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (*_MODELS, *_TASKS, *_CONNECTION, "config"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?")
    given, _ = parser.parse_known_args(argv)
    if given.config is not None:
        for name, value in _settings_of(Path(given.config)).items():
            if name in vars(given) and getattr(given, name) is None and isinstance(value, str):
                setattr(given, name, value)
    return given


def _settings_of(file: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; empty if it is not a mapping, which the later parsing refuses."""
    try:
        content = yaml.safe_load(file.read_bytes())
    except FileNotFoundError as error:
        raise UnsupportedSettingError(f"--config {file}: there is no such file{nearest_file(file)}") from error
    except OSError as error:
        raise UnsupportedSettingError(f"--config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _check_model(flag: str, model: str) -> None:
    try:
        require_model(model)
    except ModelSourceError as error:
        raise InvalidModelError(f"--{flag} {error}") from error


def _check_task(flag: str, task: str) -> None:
    try:
        require_task(task)
    except (ModelSourceError, InvalidTaskError) as error:
        raise InvalidTaskError(f"--{flag} {error}") from error
