"""Run as `torchrun` does: two processes share one group of two, each holding one completion of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.trainer.example_records import example_record
from tests.trainer.fake_service import FakeService
from vigor_client import Group, ScoreResponse
from vigor_client.integrations.trl.errors import MainProcessError
from vigor_trainer.collapse_callback import CollapseCallback
from vigor_trainer.monitoring.collapse import CollapseWatch
from vigor_trainer.rewards.groups import ScoreOptions
from vigor_trainer.rewards.round_rewards import RoundRewards
from vigor_trainer.weights.publisher import Publisher


class Stopping(FakeService):
    def score(self, groups: Sequence[Group], **insisted: Any) -> ScoreResponse:  # noqa: ANN401, ARG002 - as its base
        raise ConnectionError(f"the service is gone, {len(groups)} group was not scored")


def reward_of_my_completion(service: FakeService) -> float | None:
    me = PartialState().process_index
    with Publisher(service) as publisher:
        publisher.begin(lambda: {"weight": torch.ones(1)}, 0)
        (reward,) = RoundRewards(service, publisher, ScoreOptions(), ["vigor"], record=lambda *_: None).functions
        [mine] = reward(
            prompts=["1+1"],
            completions=["2"],
            completion_ids=[[[9], [1, 2]][me]],
            prompt_ids=[[1]],
            loss_mask=[None],
            finish_reason=["stop"],
            group_size=[2],
            mode=["train"],
            generate_seconds=[1.0],
            trainer_state=TrainerState(),
            log_metric=lambda _name, _value: None,
            log_extra=lambda _column, _values: None,
        )
    return mine


def stops_when_the_main_process_has_warned() -> bool:
    watch = CollapseWatch(ranks=True, on_warning=lambda _: None, num_rounds=1)
    if PartialState().is_main_process:
        watch.observe(example_record(0, norm_spread=0.0))
    control = TrainerControl()
    CollapseCallback(watch, stops=True).on_step_end(TrainingArguments(use_cpu=True), TrainerState(), control)
    return control.should_training_stop


def say(line: str) -> None:
    """Write a line in one piece, since both processes write to the same pipe."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def main() -> None:
    me = PartialState(cpu=True, backend="gloo").process_index
    torch.set_num_threads(1)
    service = FakeService()
    say(f"process {me}: reward {reward_of_my_completion(service)}, requests {len(service.requests)}")
    say(f"process {me}: stops {stops_when_the_main_process_has_warned()}")
    try:
        reward_of_my_completion(Stopping())
    except (ConnectionError, MainProcessError) as error:
        say(f"process {me}: {type(error).__name__}: {error}")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
