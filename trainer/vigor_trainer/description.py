"""Describes a run, from its settings and from what its service reports about itself."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence, Sized
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import torch
from transformers import SchedulerType

from vigor_client import ModelInfo
from vigor_trainer.config.parsing import Arguments
from vigor_trainer.monitoring.run_info import MachineInfo, RunInfo, ServiceInfo

PACKAGES = ("vigor-rl", "trl", "transformers", "torch", "accelerate", "peft", "math-verify")
_CPU_FILE = Path("/proc/cpuinfo")
_PLACEHOLDERS = {"reward_url": "URL", "api_key_file": "KEY_FILE"}
_SECRET = re.compile(r"(key|token|secret|password)$")
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]*@")


def describe_run(
    arguments: Arguments,
    model_name: str,
    service: ModelInfo,
    datasets: Mapping[str, Sized] | None = None,
    command: str | None = None,
) -> RunInfo:
    """Return the description of a run that trains ``model_name`` on ``datasets``, for `run.json`."""
    vigor, grpo, _ = arguments
    settings = vars(grpo)  # TRL declares wider types than some of these have
    datasets = datasets or {}
    num_processes = cast("int", grpo.world_size)  # pyright: ignore[reportUnknownMemberType] - partly untyped
    batch_size = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps
    return RunInfo(
        recipe=vigor.recipe,
        model=model_name,
        dataset=vigor.dataset,
        system_prompt=vigor.system_prompt,
        rewards=vigor.reward,
        reward_weights=settings["reward_weights"] or [1.0] * len(vigor.reward),
        vigor_sqrt_length=vigor.vigor_sqrt_length,
        vigor_rank=vigor.vigor_rank,
        min_spread=vigor.min_spread,
        ties=vigor.ties,
        completions_per_step=batch_size * num_processes,
        num_generations=settings["num_generations"],
        num_iterations=grpo.num_iterations,
        max_completion_length=settings["max_completion_length"],
        temperature=grpo.temperature,
        learning_rate=grpo.learning_rate,
        beta=grpo.beta,
        loss_type=grpo.loss_type,
        seed=grpo.seed,
        num_processes=num_processes,
        service=_service_info(service),
        versions=_versions(),
        max_steps=grpo.max_steps,
        lr_scheduler_type=SchedulerType(settings["lr_scheduler_type"]).value,
        warmup_steps=grpo.warmup_steps,
        bf16=bool(grpo.bf16),
        num_prompts=_size(datasets.get("train_dataset")),
        eval_dataset=vigor.eval_dataset,
        num_held_out=_size(datasets.get("eval_dataset")),
        eval_every=vigor.eval_every,
        eval_num_samples=vigor.eval_num_samples,
        machine=_machine_info(uses_accelerator=not grpo.use_cpu),
        command=command,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def shown_command(program: str, argv: Sequence[str]) -> str:
    """Return a command line in shell syntax, with placeholders for the service's URL, key files and secrets.

    A flag is secret if its name ends in key, token, secret or password. User names and passwords in URLs are
    left out. Everything else is unchanged, so that no path is longer than the user wrote it.
    """
    shown: list[str] = []
    placeholder: str | None = None  # for the value of the preceding flag
    for part in argv:
        flag, equals, value = part.partition("=")
        if not part.startswith("--"):
            shown.append(placeholder or _public(part))
            placeholder = None
            continue
        placeholder = _placeholder(flag)
        shown.append(f"{flag}={placeholder or _public(value)}" if equals else _public(part))
        placeholder = None if equals else placeholder
    return f"{program} {shlex.join(shown)}".strip()


def _size(dataset: Sized | None) -> int | None:
    return None if dataset is None else len(dataset)


def _machine_info(*, uses_accelerator: bool) -> MachineInfo:
    uses_cuda = uses_accelerator and torch.cuda.is_available()
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if uses_cuda else []
    return MachineInfo(processor=_processor(), num_cores=len(os.sched_getaffinity(0)), accelerators=names)


def _processor() -> str:
    """Return the name of the processor as Linux gives it, else its architecture."""
    told = _CPU_FILE.read_text(encoding="utf-8") if _CPU_FILE.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return found[1] if found else platform.machine()


def _service_info(service: ModelInfo) -> ServiceInfo:
    return ServiceInfo(
        model=service.model,
        dtype=service.dtype,
        num_parameters=service.num_parameters,
        num_measured_parameters=service.num_measured_parameters,
        measured_parameters=sorted({name for rule in service.rules for name in rule.parameters}),
        norm_probes=service.norm_probes,
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # peft is optional
            continue
    return found


def _placeholder(flag: str) -> str | None:
    name = flag.removeprefix("--").replace("-", "_")
    return _PLACEHOLDERS.get(name) or ("SECRET" if _SECRET.search(name) else None)


def _public(text: str) -> str:
    return _USER_OF_URL.sub("", text)
