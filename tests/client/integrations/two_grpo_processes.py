"""Run by `torchrun`: TRL's own trainer in two processes that hold two completions of each group of four.

Arguments: the service's URL, a directory, the class of the reward function, and `publish` to publish weights.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from tests.client.integrations.grpo import stock_trainer
from tests.support.tiny_models import tiny_tokenizer
from vigor_client.integrations.trl import reward as trl
from vigor_client.integrations.trl.publisher import WeightPublisher


def main(url: str, directory: str, kind: str, *publish: str) -> None:
    PartialState(cpu=True, backend="gloo")
    torch.set_num_threads(1)
    said = json.dumps(train(url, Path(directory), kind, publishes=bool(publish)))
    os.write(sys.stdout.fileno(), f"said {said}\n".encode())  # in one piece: both write to the same pipe
    gc.collect()  # the trainer's last reference to the group of processes, which otherwise may end in a deadlock
    PartialState().destroy_process_group()


def train(url: str, directory: Path, kind: str, *, publishes: bool) -> dict[str, Any]:
    """Three steps; what this process was told and answered, and the versions that its log has."""
    weights = WeightPublisher(url) if publishes else None
    calls: list[dict[str, Any]] = []
    reward = recorded(getattr(trl, kind)(url, tiny_tokenizer(), 4, weights=weights, on_failure="raise"), calls)
    batch_size = 4 if publishes else 2
    trainer = stock_trainer(directory, reward, weights=weights, per_device_train_batch_size=batch_size)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "rewards/vigor/mean" in entry]
    versions = [entry["vigor/weight_version"] for entry in logs]
    return {"rank": PartialState().process_index, "calls": calls, "versions": versions}


def recorded(reward: trl.VigorReward | trl.AsyncVigorReward, calls: list[dict[str, Any]]) -> Callable[..., Any]:
    """The same function; what it was told and what it answered is added to `calls`."""

    def record(told: dict[str, Any], rewards: list[float | None]) -> list[float | None]:
        calls.append({"prompts": told["prompts"], "ids": told["completion_ids"], "rewards": rewards})
        return rewards

    def blocking(**told: Any) -> list[float | None]:  # noqa: ANN401 - as TRL calls it
        return record(told, reward(**told))  # pyright: ignore[reportArgumentType] - of the blocking kind

    async def awaited(**told: Any) -> list[float | None]:  # noqa: ANN401 - likewise
        return record(told, await reward(**told))  # pyright: ignore[reportGeneralTypeIssues] - of the other kind

    function = awaited if isinstance(reward, trl.AsyncVigorReward) else blocking
    function.__name__ = reward.__name__
    return function


if __name__ == "__main__":
    main(*sys.argv[1:])
