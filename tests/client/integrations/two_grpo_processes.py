"""Run by `torchrun`: TRL's own trainer in two processes that hold two completions of each group of four.

Arguments: the service's URL, a directory, the class of the reward function, and `publish` to publish weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from tests.client.integrations.grpo import stock_trainer
from tests.tiny_models import tiny_tokenizer
from vigor_client.integrations import trl
from vigor_client.integrations.trl_weights import WeightPublisher


def main(url: str, directory: str, kind: str, *publish: str) -> None:
    PartialState(cpu=True, backend="gloo")
    torch.set_num_threads(1)
    weights = WeightPublisher(url) if publish else None
    reward = getattr(trl, kind)(url, tiny_tokenizer(), 4, weights=weights, on_failure="raise")
    rows: list[dict[str, Any]] = []

    def heard(completion_ids: list[list[int]], **_others: object) -> list[float]:
        rows.extend({"ids": ids} for ids in completion_ids)
        return [0.0] * len(completion_ids)

    batch_size = 4 if publish else 2
    trainer = stock_trainer(Path(directory), reward, heard, weights=weights, per_device_train_batch_size=batch_size)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "rewards/vigor/mean" in entry]
    said = {
        "rank": PartialState().process_index,
        "ids": [row["ids"] for row in rows],
        "versions": [entry["vigor/weight_version"] for entry in logs],
        "means": [entry["rewards/vigor/mean"] for entry in logs],
        "stds": [entry["rewards/vigor/std"] for entry in logs],
    }
    os.write(sys.stdout.fileno(), f"said {json.dumps(said)}\n".encode())  # in one piece: both write to the same pipe
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
