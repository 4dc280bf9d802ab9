"""The command line: TRL's own flags and YAML file, and the few settings that TRL lacks.

Order of precedence: flag, then `--config` file, then `--recipe`, then what a machine without a GPU needs, then the
default of every run (`recipes/_default.yaml`), then TRL's.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import yaml
from transformers.utils.import_utils import is_peft_available, is_torch_bf16_gpu_available
from trl import GRPOConfig, ModelConfig, TrlParser  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_trainer.building import BUILTIN_REFUSALS
from vigor_trainer.config.arguments import DESCRIPTION, PROGRAM, USAGE, VigorArguments
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.flags import OneLineParser, unknown_options
from vigor_trainer.recipes.choice import Given, chosen_settings
from vigor_trainer.recipes.files import default_settings

# Defaults for training on a CPU: transformers refuses TRL's default of bfloat16 there, a reference model costs another
# forward pass, and 1024 tokens for each of 8 completions take minutes.
CPU_SETTINGS: dict[str, Any] = {"use_cpu": True, "bf16": False, "beta": 0.0, "max_completion_length": 48}


class Arguments(NamedTuple):
    """All settings of a run: those of the trainer, of GRPO and of the model."""

    vigor: VigorArguments
    grpo: GRPOConfig
    model: ModelConfig


class _Parser(OneLineParser, TrlParser):
    """A TrlParser that reports an error in one line."""


def parse_arguments(argv: Sequence[str], *, has_gpu: bool | None = None) -> Arguments:
    """Parse flags and the YAML file; an error prints one line and exits with code 2.

    ``has_gpu`` is whether torch finds an accelerator on this machine (None: ask it). Without one, or with
    ``--use_cpu``, ``CPU_SETTINGS`` are the defaults.
    """
    if has_gpu is None:
        has_gpu = torch.accelerator.is_available()
    chosen = _chosen_settings(argv)
    arguments = _parse(argv, default_settings() | (_gpu_settings() if has_gpu else CPU_SETTINGS) | chosen)
    return _parse(argv, default_settings() | CPU_SETTINGS | chosen) if has_gpu and arguments.grpo.use_cpu else arguments


def describe_cpu_settings(grpo: GRPOConfig) -> str | None:
    """Return one line that names the settings chosen for training on a CPU; None if a GPU trains."""
    if not grpo.use_cpu:
        return None
    chosen = [
        f"--{name} {str(value).lower() if isinstance(value, bool) else f'{value:g}'}"
        for name, value in CPU_SETTINGS.items()
        if name != "use_cpu" and getattr(grpo, name) == value
    ]
    settings = f" with {' '.join(chosen)} (a flag, the --config file or a recipe overrides each)" if chosen else ""
    return f"training on the CPU{settings}"


def _gpu_settings() -> dict[str, Any]:
    """Return the settings for a GPU without bfloat16, which is TRL's default and which transformers refuses there."""
    return {} if is_torch_bf16_gpu_available() else {"bf16": False}


def _chosen_settings(argv: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the recipe that flags or the YAML file name."""
    kinds: Any = (Given,)
    parser = _Parser(kinds, prog=PROGRAM, allow_abbrev=False, add_help=False)
    with _refusals(parser):
        given, _ = parser.parse_args_and_config(_separate_config(argv), return_remaining_strings=True)
        return chosen_settings(given)


def _parse(argv: Sequence[str], defaults: dict[str, Any]) -> Arguments:
    kinds: Any = (VigorArguments, GRPOConfig, ModelConfig)
    parser = _Parser(kinds, prog=PROGRAM, usage=USAGE, description=DESCRIPTION, allow_abbrev=False)
    parser.set_defaults_with_config(**defaults)  # pyright: ignore[reportUnknownMemberType] - TRL has no type there
    with _refusals(parser):
        *parsed, unknown = parser.parse_args_and_config(_separate_config(argv), return_remaining_strings=True)
        arguments = Arguments(*parsed)
        _refuse_unknown(unknown, parser)
        _refuse_unsupported(arguments)
        return arguments


@contextmanager
def _refusals(parser: _Parser) -> Generator[None]:
    """End the program with one line and code 2 if the command line cannot be run."""
    try:
        yield
    except UnicodeDecodeError as error:  # only the --config file is read as text
        parser.error(f"--config: {error}: save the file as UTF-8")
    except (*BUILTIN_REFUSALS, yaml.YAMLError, UnsupportedSettingError) as error:
        parser.error(str(error))


def _separate_config(argv: Sequence[str]) -> list[str]:
    """Split `--config=FILE` into two arguments, since TrlParser knows only `--config FILE`.

    Raises:
        UnsupportedSettingError: no file follows the flag.
    """
    if argv and argv[-1] == "--config":
        raise UnsupportedSettingError("--config needs a file")
    parts = (part.split("=", 1) if part.startswith("--config=") else [part] for part in argv)
    return [piece for pieces in parts for piece in pieces]


def _refuse_unknown(unknown: Sequence[str], parser: _Parser) -> None:
    if unknown:
        raise UnsupportedSettingError(unknown_options(unknown, parser))


def _refuse_unsupported(arguments: Arguments) -> None:
    """Refuse settings with which generation would use weights other than the published ones."""
    vigor, grpo, model = arguments
    if vigor.model and model.model_name_or_path:
        raise UnsupportedSettingError("--model and --model_name_or_path are the same setting: give only one")
    if model.use_peft and not is_peft_available():
        raise UnsupportedSettingError("--use_peft needs peft: pip install peft")
    if model.load_in_8bit or model.load_in_4bit:
        raise UnsupportedSettingError("--load_in_8bit, --load_in_4bit: quantized weights cannot be published")
    if grpo.fp16 and grpo.use_cpu:
        raise UnsupportedSettingError("--fp16 needs a GPU: leave it out to train in float32 on a CPU")
    if grpo.use_transformers_continuous_batching and (grpo.bf16 or grpo.fp16):
        raise UnsupportedSettingError(
            "--use_transformers_continuous_batching casts the model while it generates: give --bf16 false"
        )
    if vigor.broadcast and vigor.shared_directory:
        raise UnsupportedSettingError("--broadcast and --shared_directory are two ways to send weights: give only one")
    if vigor.stop_on_collapse and grpo.save_strategy == "no":
        raise UnsupportedSettingError("--stop_on_collapse needs checkpoints to return to: give --save_strategy steps")
    if grpo.eval_strategy != "no" and not vigor.eval_dataset:
        raise UnsupportedSettingError("--eval_strategy needs --eval_dataset")
    if vigor.eval_every and not vigor.eval_dataset:
        raise UnsupportedSettingError("--eval_every needs --eval_dataset")
