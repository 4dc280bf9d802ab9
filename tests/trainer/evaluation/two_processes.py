"""Run as `torchrun` does: two processes share the questions of an evaluation; what they find is that of one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from tests.support.tiny_models import tiny_tokenizer
from vigor_trainer.evaluation.completions import questions_of
from vigor_trainer.evaluation.during_training import Evaluations, HeldOut
from vigor_trainer.evaluation.sampling import SampledTokens
from vigor_trainer.monitoring.evaluations import EVALUATION_COMPLETIONS_FILE, read_evaluated, read_evaluations


class EchoSampler:
    """Every completion is the prompt."""

    def sample(
        self,
        prompts: Sequence[list[int]],
        *,
        num_samples: int,
        temperature: float,  # noqa: ARG002 - as Sampler has it
    ) -> list[list[SampledTokens]]:
        return [[SampledTokens(ids, "stop", 0.5)] * num_samples for ids in prompts]


class Trainer:
    """What is needed of a `VigorTrainer`."""

    def __init__(self) -> None:
        self.accelerator: Any = PartialState()
        self.logged: dict[str, float] = {}

    def log_evaluation(self, metrics: dict[str, float], /) -> None:
        self.logged = metrics


def main() -> None:
    state, directory = PartialState(cpu=True, backend="gloo"), Path(sys.argv[1])
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    questions = questions_of([(f"Is it {n}", str(n), None) for n in range(1, 6)], tokenizer)
    trainer = Trainer()
    Evaluations(trainer, HeldOut(questions, 2, 1.0), EchoSampler(), tokenizer, directory, None).evaluate(3)
    state.wait_for_everyone()
    rows = [(each.question, each.decoding) for each in read_evaluated(directory / EVALUATION_COMPLETIONS_FILE)]
    whole = [(n, decoding) for n in range(5) for decoding in ("greedy", "sampled", "sampled")]
    line = f"process {state.process_index}: accuracy {trainer.logged['eval_greedy_accuracy']}, whole {rows == whole}, "
    os.write(sys.stdout.fileno(), f"{line}{len(read_evaluations(directory))} line\n".encode())
    state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
