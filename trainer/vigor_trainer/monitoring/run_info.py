"""The description of a run: `run.json` in its directory, which reports and studies read. It holds no key or address."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

INFO_FILE = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """The model as the service reports it, and which of its parameters are in the norm."""

    model: str
    dtype: str
    num_parameters: int
    num_measured_parameters: int
    measured_parameters: Sequence[str]  # names
    norm_probes: int | None  # None: norms are exact


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """The machine of the main process."""

    processor: str
    num_cores: int  # cores that the process may use
    accelerators: Sequence[str]  # names; empty if there are none or they are not used


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """The settings and versions that a run's curves depend on. Numbers of completions are over all processes.

    Fields whose default is None are absent in descriptions by an earlier version.
    """

    recipe: str | None
    model: str
    dataset: str
    system_prompt: str | None
    rewards: Sequence[str]
    reward_weights: Sequence[float]
    vigor_sqrt_length: bool
    vigor_rank: bool
    min_spread: float
    ties: str
    num_generations: int
    completions_per_step: int
    num_iterations: int
    max_completion_length: int  # tokens
    temperature: float
    learning_rate: float
    beta: float
    loss_type: str
    seed: int
    num_processes: int
    service: ServiceInfo
    versions: dict[str, str]  # of packages
    max_steps: int | None = None  # -1: set by the number of epochs
    lr_scheduler_type: str | None = None
    warmup_steps: float | None = None  # below 1: a share of all steps
    bf16: bool | None = None
    num_prompts: int | None = None
    eval_dataset: str | None = None
    num_held_out: int | None = None  # number of prompts in the evaluation dataset
    eval_every: int | None = None  # optimizer steps
    eval_num_samples: int | None = None
    machine: MachineInfo | None = None
    command: str | None = None
    started: str | None = None  # ISO 8601, in UTC


def write_run_info(directory: Path, info: RunInfo) -> None:
    """Write `run.json` atomically, replacing that of an earlier run."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{INFO_FILE}.partial"
    partial.write_text(json.dumps(asdict(info), indent=1) + "\n", encoding="utf-8")
    partial.replace(directory / INFO_FILE)


def read_run_info(directory: Path) -> RunInfo | None:
    """Return the content of a run's `run.json`; None if it does not exist.

    Raises:
        ValueError: the file holds something else; names it.
    """
    path = directory / INFO_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {"service": ServiceInfo(**content["service"])}
        if content.get("machine") is not None:
            parts["machine"] = MachineInfo(**content["machine"])
        return RunInfo(**content | parts)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path}: not a description of a run by this version of vigor-trainer") from error
