"""The settings that TRL lacks, by subject. The first line of each class is its heading in the help.

Knows neither torch nor TRL: the help does not wait for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from vigor_client.schemas.scoring import MAX_WAIT_SECONDS
from vigor_trainer.connection import ConnectionArguments
from vigor_trainer.data.arguments import TaskArguments
from vigor_trainer.flags import refuse_less

PROGRAM = "vigor-trainer"
USAGE = "vigor-trainer --reward-url URL --dataset DATASET [--model MODEL] [--config FILE.yaml] [any flag of TRL]"
DESCRIPTION = """Train a language model by its own gradient norms: TRL's GRPO, rewarded by a running vigor-service.
Every flag of TRL's GRPOConfig and ModelConfig works, and so does --config FILE.yaml with the same names."""

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


@dataclass(kw_only=True)
class RunArguments:
    """Model and recipe."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Directory or hub name of the model, the same setting as TRL's --model_name_or_path; default: the "
            "embedded SmolLM2-135M-Instruct"
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Name of a recipe, the settings of a whole run: vigor-3b-math, tiny, …; list prints all names"
        },
    )


@dataclass(kw_only=True)
class DataArguments(TaskArguments):
    """Training prompts."""

    dataset: str = field(
        metadata={
            "help": "Training prompts: addition, reasoning-gym:<task>, a .jsonl file, or the name of a dataset on "
            "the hub"
        }
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of the hub dataset"})
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Maximum length of a prompt, in tokens; --overlong_prompts says what happens to longer ones"},
    )
    overlong_prompts: Literal["refuse", "skip"] = field(
        default="refuse",
        metadata={
            "help": "What to do with prompts that are longer than --max_prompt_length, or leave no room for "
            "--max_completion_length in the service's context: refuse to start the run, or skip them"
        },
    )


@dataclass(kw_only=True)
class RewardArguments:
    """Rewards."""

    reward: list[str] = field(
        default_factory=lambda: ["vigor"],
        metadata={
            "help": f"Rewards of a completion: one or more of {', '.join(BUILTINS)}, or module:function; their weights "
            "are TRL's --reward_weights"
        },
    )
    vigor_sqrt_length: bool = field(
        default=True,
        metadata={"help": "Whether to multiply norms by the square root of the completion's length, as published"},
    )
    vigor_rank: bool = field(
        default=True,
        metadata={"help": "Whether to turn norms into ranks, as published; if not, the reward is the negative norm"},
    )
    ties: Literal["average", "ordinal"] = field(
        default="average",
        metadata={"help": "Ranks of equal values: average gives each their mean rank, ordinal ranks them by index"},
    )
    min_spread: float = field(
        default=0.0,
        metadata={
            "help": "Minimum difference between a group's largest and smallest norm, as a share of their mean; a group "
            "below it gets vigor 0"
        },
    )
    completions_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Number of completions in one optimizer step, over all processes, reached by accumulating "
            "gradients; --gradient_accumulation_steps overrides it"
        },
    )
    stop_on_collapse: bool = field(
        default=False,
        metadata={"help": "Whether the first warning of the collapse watch stops training; needs --save_strategy"},
    )


@dataclass(kw_only=True)
class WeightArguments:
    """Publication of weights."""

    deltas: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "Whether to send only the weights that changed, which keeps a copy of the model in host memory; "
            "auto: on if the service's weights have 16 bits, of which few change in a step"
        },
    )
    shared_directory: str | None = field(
        default=None,
        metadata={
            "help": "Path of the service's --weights-root on this machine; weights are sent through it instead of over "
            "HTTP"
        },
    )
    broadcast: Literal["gloo", "nccl"] | None = field(
        default=None,
        metadata={
            "help": "Backend for sending weights through torch.distributed, to a service started with --allow-broadcast"
        },
    )
    broadcast_host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address at which the service reaches this machine; used with --broadcast"},
    )
    wait_seconds: float = field(
        default=30.0,
        metadata={"help": "Maximum time that a score request waits in the service for this step's weights, in seconds"},
    )


@dataclass(kw_only=True)
class HeldOutArguments:
    """Evaluation during training."""

    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Evaluation prompts, given as --dataset is; used with --eval_every and --eval_strategy"},
    )
    eval_dataset_split: str = field(default="test", metadata={"help": "Split of the hub dataset for evaluation"})
    eval_every: int = field(
        default=0,
        metadata={
            "help": "Number of optimizer steps between evaluations of accuracy, length and entropy, without rewards; 0 "
            "disables them"
        },
    )
    eval_limit: int = field(
        default=100, metadata={"help": "Number of questions in each such evaluation, from the first"}
    )
    eval_num_samples: int = field(
        default=0,
        metadata={
            "help": "Number of sampled completions per question in each such evaluation, in addition to the greedy one"
        },
    )


@dataclass(kw_only=True)
class VigorArguments(
    HeldOutArguments, WeightArguments, RewardArguments, DataArguments, RunArguments, ConnectionArguments
):
    """The settings that TRL lacks. Each is a flag and a key of the YAML file.

    Raises:
        ValueError: a number is out of its range, or a reward is not known; names the flag.
    """

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
