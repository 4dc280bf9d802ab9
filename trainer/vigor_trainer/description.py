"""Says what a run is, from its settings and what its service says about itself."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import cast

from vigor_client import ModelInfo
from vigor_trainer.config.parsing import Arguments
from vigor_trainer.monitoring.run_info import RunInfo, ServiceInfo

PACKAGES = ("vigor-rl", "trl", "transformers", "torch", "accelerate", "peft", "math-verify")


def describe_run(arguments: Arguments, model_name: str, service: ModelInfo) -> RunInfo:
    """Return the description of a run that trains ``model_name``, for `run.json`."""
    vigor, grpo, _ = arguments
    settings = vars(grpo)  # TRL declares some of these wider than they are
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
    )


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
