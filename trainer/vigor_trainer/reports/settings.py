"""The settings of runs side by side, with data, machine, versions and command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from vigor_trainer.monitoring.run_info import RunInfo
from vigor_trainer.reports.runs import Run

NOT_RECORDED = "not recorded"

Value = Callable[[RunInfo], object]


class Setting(TypedDict):
    """One row: a value for each run. ``differs`` is whether they are not all equal."""

    name: str
    values: list[str]
    differs: bool


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Return all settings of runs, in groups: the model, the method, the data, the machine, and the command."""
    return [_setting(name, value, runs) for name, value in _VALUES.items()]


def _setting(name: str, value: Value, runs: Sequence[Run]) -> Setting:
    values = [NOT_RECORDED if run.info is None else _text(value(run.info)) for run in runs]
    return {"name": name, "values": values, "differs": len(set(values)) > 1}


def _text(value: object) -> str:
    """Return a value as text for a reader; None stands for a value that an earlier version did not record."""
    if value is None or value == "":
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _dataset(name: str | None, number: int | None) -> str | None:
    if name is None:
        return None
    return f"{name}, {number:,} prompts" if number is not None else f"{name}, number of prompts {NOT_RECORDED}"


def _rewards(info: RunInfo) -> str:
    weights = [f" × {weight:g}" if len(info.rewards) > 1 else "" for weight in info.reward_weights]
    return " + ".join(f"{name}{weight}" for name, weight in zip(info.rewards, weights, strict=True))


def _norm_of(info: RunInfo) -> str:
    service = info.service
    kind = "exact" if service.norm_probes is None else f"estimated with {service.norm_probes} sketch vectors"
    return f"{service.num_measured_parameters:,} of {service.num_parameters:,} parameters, {kind}"


def _machine(info: RunInfo) -> str | None:
    if info.machine is None:
        return None
    accelerators = ", ".join(info.machine.accelerators) or "no accelerator used"
    return f"{info.machine.processor}, {info.machine.num_cores} cores; {accelerators}"


def _versions(info: RunInfo) -> str:
    return ", ".join(f"{package} {version}" for package, version in info.versions.items())


_VALUES: Mapping[str, Value] = {
    "reward": _rewards,
    "recipe": lambda info: info.recipe or "none",
    "model": lambda info: info.model,
    "parameters in the gradient norm": _norm_of,
    "dtype of the service": lambda info: info.service.dtype,
    "training dataset": lambda info: _dataset(info.dataset, info.num_prompts),
    "held-out dataset": lambda info: _dataset(info.eval_dataset, info.num_held_out),
    "system prompt": lambda info: info.system_prompt or "none",
    "optimizer steps": lambda info: info.max_steps,
    "completions of a step": lambda info: info.completions_per_step,
    "completions of a prompt": lambda info: info.num_generations,
    "maximum length of a completion, in tokens": lambda info: info.max_completion_length,
    "temperature": lambda info: info.temperature,
    "learning rate": lambda info: info.learning_rate,
    "schedule of the learning rate": lambda info: info.lr_scheduler_type,
    "warm-up, in steps (below 1: share of all)": lambda info: info.warmup_steps,
    "weight of the KL divergence (beta)": lambda info: info.beta,
    "loss": lambda info: info.loss_type,
    "updates per batch (num_iterations)": lambda info: info.num_iterations,
    "norm times √T": lambda info: info.vigor_sqrt_length,
    "norms become ranks": lambda info: info.vigor_rank,
    "minimum spread of norms": lambda info: info.min_spread,
    "ranks of equal values": lambda info: info.ties,
    "trained in bfloat16": lambda info: info.bf16,
    "optimizer steps between evaluations": lambda info: info.eval_every,
    "sampled completions of a held-out question": lambda info: info.eval_num_samples,
    "seed": lambda info: info.seed,
    "processes": lambda info: info.num_processes,
    "machine": _machine,
    "versions": _versions,
    "started (UTC)": lambda info: info.started,
    "command": lambda info: info.command,
}
