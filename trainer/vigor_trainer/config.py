"""The command line: TRL's own flags and YAML file, and the few settings that TRL lacks.

Order of precedence: flag, then `--config` file, then `--recipe`, then what a machine without a GPU needs, then the
default of every run (`recipes/_default.yaml`), then TRL's.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
import yaml
from transformers.utils.import_utils import is_peft_available, is_torch_bf16_gpu_available
from trl import GRPOConfig, ModelConfig, TrlParser  # pyright: ignore[reportPrivateImportUsage] - exported lazily

from vigor_client.schemas.scoring import MAX_WAIT_SECONDS
from vigor_trainer.building import BUILTIN_REFUSALS
from vigor_trainer.connection import ConnectionArguments
from vigor_trainer.data.arguments import TaskArguments
from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.flags import OneLineParser, refuse_less
from vigor_trainer.recipes.choice import Given, chosen_settings
from vigor_trainer.recipes.files import default_settings

BuiltinName = Literal[
    "vigor",
    "self_certainty",
    "entropy",
    "logprob",
    "p_norm",
    "trajectory_logprob",
    "verifier",
    "majority",
    "format",
    "random",
]
BUILTINS: tuple[BuiltinName, ...] = get_args(BuiltinName)

# In place of the default values where a CPU trains: transformers refuses TRL's default of bfloat16 there, a reference
# model costs another forward pass, and 1024 tokens for each of 8 completions cost minutes.
CPU_SETTINGS: dict[str, Any] = {"use_cpu": True, "bf16": False, "beta": 0.0, "max_completion_length": 48}

PROGRAM = "vigor-trainer"
USAGE = "vigor-trainer --reward-url URL --dataset DATASET [--model MODEL] [--config FILE.yaml] [any flag of TRL]"
DESCRIPTION = """Train a language model by its own gradient norms: TRL's GRPO, rewarded by a running vigor-service.
Every flag of TRL's GRPOConfig and ModelConfig works, and so does --config FILE.yaml with the same names."""


@dataclass(kw_only=True)
class VigorArguments(ConnectionArguments, TaskArguments):
    """The settings that TRL lacks. Each is a flag and a key of the YAML file."""

    recipe: str | None = field(
        default=None, metadata={"help": "Settings of a whole run by name: vigor-3b-math, tiny, …; list names all"}
    )
    dataset: str = field(
        metadata={
            "help": "Training prompts: addition, reasoning-gym:<task>, a .jsonl file, or the name of a dataset on "
            "the hub"
        }
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Directory or hub name of the model, the same setting as TRL's --model_name_or_path; by default "
            "the embedded SmolLM2-135M-Instruct"
        },
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Evaluation prompts, in the form of --dataset; used with --eval_every and --eval_strategy"},
    )
    eval_every: int = field(
        default=0,
        metadata={
            "help": "Optimizer steps between evaluations of accuracy, length and entropy, without rewards; 0: none"
        },
    )
    eval_limit: int = field(default=100, metadata={"help": "Number of questions of such an evaluation, from the first"})
    eval_num_samples: int = field(
        default=0, metadata={"help": "Number of sampled completions of a question, beside the greedy one"}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub dataset"})
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of a hub dataset for evaluation"})
    overlong_prompts: Literal["refuse", "skip"] = field(
        default="refuse",
        metadata={
            "help": "Treatment of prompts that are longer than max_prompt_length, or leave no room for "
            "max_completion_length in the service's context: refuse the run before its first step, or skip them"
        },
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a prompt; --overlong_prompts says what happens to others"}
    )
    completions_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Completions of one optimizer step in all processes together, by accumulating gradients; "
            "--gradient_accumulation_steps wins over it"
        },
    )
    reward: list[str] = field(
        default_factory=lambda: ["vigor"],
        metadata={
            "help": f"Rewards of a completion, one or more of {', '.join(BUILTINS)}, or module:function; their weights "
            "are TRL's --reward_weights"
        },
    )
    vigor_sqrt_length: bool = field(
        default=True, metadata={"help": "Whether norms are multiplied by the square root of the length, as published"}
    )
    vigor_rank: bool = field(
        default=True, metadata={"help": "Whether norms become ranks, as published; else their negatives are the reward"}
    )
    min_spread: float = field(
        default=0.0,
        metadata={"help": "Share of their mean by which a group's norms must differ; a group below it gets vigor 0"},
    )
    stop_on_collapse: bool = field(
        default=False,
        metadata={"help": "Whether the first warning of the collapse watch ends training; needs --save_strategy"},
    )
    ties: Literal["average", "ordinal"] = field(
        default="average", metadata={"help": "Ranks of equal values: all get their mean rank, or they rank by index"}
    )
    deltas: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "Whether to send only the weights that changed, which keeps a copy of the model in host memory; "
            "auto: on if the service has weights in 16 bits, where few change"
        },
    )
    shared_directory: str | None = field(
        default=None,
        metadata={"help": "Path of the service's --weights-root on this machine: weights go through it, not over HTTP"},
    )
    broadcast: Literal["gloo", "nccl"] | None = field(
        default=None,
        metadata={
            "help": "Backend to send weights through torch.distributed, to a service started with --allow-broadcast"
        },
    )
    broadcast_host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address of this machine at which the service reaches it; used with --broadcast"},
    )
    wait_seconds: float = field(
        default=30.0, metadata={"help": "Seconds a score request may wait in the service for this step's weights"}
    )

    def __post_init__(self) -> None:
        ConnectionArguments.__post_init__(self)
        TaskArguments.__post_init__(self)
        if not 0 <= self.wait_seconds <= MAX_WAIT_SECONDS:
            raise ValueError(f"--wait_seconds is {self.wait_seconds:g}: give 0 to {MAX_WAIT_SECONDS:g}")
        self.reward = [self.reward] if isinstance(self.reward, str) else self.reward  # as a YAML file may have it
        if not self.reward or len(set(self.reward)) < len(self.reward):
            raise ValueError(f"--reward is {' '.join(self.reward) or 'empty'}: give each reward once")
        if unknown := [name for name in self.reward if name not in BUILTINS and ":" not in name]:
            raise ValueError(f"--reward {unknown[0]}: give one or more of {', '.join(BUILTINS)}, or module:function")
        refuse_less(self, 0, "min_spread", "eval_every", "eval_num_samples")
        refuse_less(self, 1, "max_prompt_length", "completions_per_step", "eval_limit")


class Arguments(NamedTuple):
    """All settings of a run: those of the trainer, of GRPO and of the model."""

    vigor: VigorArguments
    grpo: GRPOConfig
    model: ModelConfig


class _Parser(OneLineParser, TrlParser):
    """TrlParser whose errors have one line."""


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
    """Return one line that names the settings chosen because a CPU trains; None where a GPU does."""
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
    """Return what a GPU without bfloat16 needs: it is TRL's default, and transformers refuses it there."""
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
        _refuse_unknown(unknown)
        _refuse_unsupported(arguments)
        return arguments


@contextmanager
def _refusals(parser: _Parser) -> Generator[None]:
    """End the program with one line, and code 2, where the command line cannot be run."""
    try:
        yield
    except UnicodeDecodeError as error:  # only the file of --config is text from outside
        parser.error(f"--config: {error}: save the file as UTF-8")
    except (*BUILTIN_REFUSALS, yaml.YAMLError, UnsupportedSettingError) as error:
        parser.error(str(error))


def _separate_config(argv: Sequence[str]) -> list[str]:
    """Split `--config=FILE` in two, since TrlParser knows only `--config FILE`.

    Raises:
        UnsupportedSettingError: no file follows it.
    """
    if argv and argv[-1] == "--config":
        raise UnsupportedSettingError("--config needs a file")
    parts = (part.split("=", 1) if part.startswith("--config=") else [part] for part in argv)
    return [piece for pieces in parts for piece in pieces]


def _refuse_unknown(unknown: Sequence[str]) -> None:
    if unknown:
        raise UnsupportedSettingError(f"not understood: {' '.join(unknown)}")


def _refuse_unsupported(arguments: Arguments) -> None:
    """Refuse settings under which the published weights would not be the ones that generate."""
    vigor, grpo, model = arguments
    if vigor.model and model.model_name_or_path:
        raise UnsupportedSettingError("--model and --model_name_or_path are the same setting: give one")
    if model.use_peft and not is_peft_available():
        raise UnsupportedSettingError("--use_peft needs peft: pip install peft")
    if model.load_in_8bit or model.load_in_4bit:
        raise UnsupportedSettingError("--load_in_8bit, --load_in_4bit: quantized weights cannot be published")
    if grpo.fp16 and grpo.use_cpu:
        raise UnsupportedSettingError("--fp16 needs a GPU: leave it out, which trains in float32 on a CPU")
    if grpo.use_transformers_continuous_batching and (grpo.bf16 or grpo.fp16):
        raise UnsupportedSettingError(
            "--use_transformers_continuous_batching casts the model while it generates: give --bf16 false"
        )
    if vigor.broadcast and vigor.shared_directory:
        raise UnsupportedSettingError("--broadcast and --shared_directory both say how weights are sent: give one")
    if vigor.stop_on_collapse and grpo.save_strategy == "no":
        raise UnsupportedSettingError("--stop_on_collapse keeps the last good checkpoint: give --save_strategy steps")
    if grpo.eval_strategy != "no" and not vigor.eval_dataset:
        raise UnsupportedSettingError("--eval_strategy needs --eval_dataset")
    if vigor.eval_every and not vigor.eval_dataset:
        raise UnsupportedSettingError("--eval_every needs --eval_dataset")
