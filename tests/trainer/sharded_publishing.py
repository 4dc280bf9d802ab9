"""Run as `torchrun` does: a model that Accelerate has spread over two processes is trained a step and published.

Arguments: a checkpoint, `ddp` or `fsdp2`, the URL of a service. Each process says what came of it.
"""

from __future__ import annotations

import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import AutoModelForCausalLM

from vigor_client import VigorClient, VigorError
from vigor_trainer.weights.gathering import gathered_weights
from vigor_trainer.weights.publisher import Publisher

STEP = 5


def step(accelerator: Accelerator, checkpoint: str) -> torch.nn.Module:
    """Return the prepared model after a step of plain gradient descent on the same tokens in every process."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
    ids = torch.arange(1, 17)[None]
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    optimizer.step()
    return model


def publish(accelerator: Accelerator, model: torch.nn.Module, url: str) -> str:
    with VigorClient(url, max_retries=0, timeout_seconds=30) as client, Publisher(client) as publisher:
        publisher.begin(lambda: gathered_weights(accelerator, model), STEP)
        return publisher.finish().weight_digest


def say(line: str) -> None:
    """Write a line in one piece, since both processes write to the same pipe."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def main(checkpoint: str, kind: str, url: str) -> None:
    torch.set_num_threads(1)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2) if kind == "fsdp2" else None
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = step(accelerator, checkpoint)
    try:
        say(f"process {accelerator.process_index}: {publish(accelerator, model, url)}")
    except VigorError as error:
        say(f"process {accelerator.process_index}: {type(error).__name__}")
    accelerator.wait_for_everyone()
    os._exit(0)  # where FSDP's tensors are freed first, gloo's threads sometimes never end


if __name__ == "__main__":
    main(*sys.argv[1:])
