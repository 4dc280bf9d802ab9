"""The common flags of the commands that sample from a model, and their parser, which reports an error in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from transformers import HfArgumentParser

from vigor_trainer.data.arguments import TaskArguments
from vigor_trainer.flags import OneLineParser, refuse_less, refuse_not_above_zero, unknown_options

Backend = Literal["auto", "transformers", "vllm"]


@dataclass(kw_only=True)
class SamplingArguments(TaskArguments):
    """What is sampled from, and how. Each is a flag.

    Raises:
        ValueError: a number is out of its range; names the flag.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Directory or hub name of the model; default: the embedded SmolLM2-135M-Instruct"},
    )
    dataset_split: str = field(default="test", metadata={"help": "Split of the hub dataset"})
    limit: int | None = field(
        default=None, metadata={"help": "Number of questions to use, from the first; default: all"}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature"})
    max_completion_length: int = field(
        default=512, metadata={"help": "Maximum length of a completion, in tokens; longer ones are cut off"}
    )
    batch_size: int = field(default=32, metadata={"help": "Number of completions to generate at once"})
    seed: int = field(default=0, metadata={"help": "Random seed of the sampling, and of generated tasks"})
    backend: Backend = field(
        default="auto", metadata={"help": "Library that generates completions; auto: vLLM if it is installed"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_less(self, 1, "max_completion_length", "batch_size", "limit")
        refuse_not_above_zero(self, "temperature")


@dataclass(kw_only=True)
class EvalArguments(SamplingArguments):
    """The flags of `vigor-trainer eval`."""

    dataset: str = field(
        metadata={
            "help": "Questions: addition, reasoning-gym:<task>, a .jsonl file, or the name of a dataset on the hub"
        }
    )
    num_samples: int = field(
        default=4,
        metadata={"help": "Number of sampled completions per question, in addition to the greedy one; 0 samples none"},
    )
    output: str = field(default="runs/eval", metadata={"help": "Directory for eval.json and completions.jsonl"})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_less(self, 0, "num_samples")


Parsed = TypeVar("Parsed", bound=SamplingArguments)


class _Parser(OneLineParser, HfArgumentParser):
    """An HfArgumentParser that reports an error in one line."""


def parse_flags(kind: type[Parsed], argv: Sequence[str], *, command: str, description: str) -> Parsed:
    """Parse the flags of one command; an error prints one line and exits with code 2."""
    parser = _Parser(cast("Any", kind), prog=f"vigor-trainer {command}", description=description, allow_abbrev=False)
    parse = cast("Callable[..., tuple[Any, ...]]", parser.parse_args_into_dataclasses)  # pyright: ignore[reportUnknownMemberType]
    try:
        parsed, *_, unknown = parse(args=list(argv), return_remaining_strings=True, look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(unknown_options(unknown, parser))
    return parsed


def settings_of(arguments: SamplingArguments) -> dict[str, Any]:
    """Return the flags and their values, as they are written next to the results."""
    return dataclasses.asdict(arguments)
