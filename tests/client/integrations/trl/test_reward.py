"""TRL's own trainer takes its rewards from a service: what it asks, what it gets, and what happens when that fails."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerState

from tests.client.integrations.gathering_service import GatheringService, gathering_service
from tests.client.integrations.grpo import CHATS, TEXTS, stock_trainer
from tests.support.tiny_models import tiny_tokenizer
from vigor_client import AsyncVigorClient, PublishResult, UnreachableError, VigorError
from vigor_client.integrations.trl.distributed import Processes
from vigor_client.integrations.trl.errors import WrongAnswerError
from vigor_client.integrations.trl.reward import AsyncVigorReward, VigorReward

CLOSED_PORT_URL = "http://127.0.0.1:9"
EOS = 257
Kind = type[VigorReward] | type[AsyncVigorReward]
both_kinds = pytest.mark.parametrize("kind", [VigorReward, AsyncVigorReward])


@pytest.fixture
def service() -> Iterator[GatheringService]:
    with gathering_service() as running:
        yield running


def call(reward: VigorReward | AsyncVigorReward, *, prompts: list[Any], ids: list[list[int]], **told: Any) -> Any:  # noqa: ANN401
    """Call the function as TRL does."""
    completions = tiny_tokenizer().batch_decode(ids, skip_special_tokens=True)
    given = {"trainer_state": TrainerState(global_step=5), **told}
    answer = reward(prompts=prompts, completions=completions, completion_ids=ids, **given)
    return answer if isinstance(answer, list) else asyncio.run(answer)


def place(rank: int, count: int) -> Callable[[], Processes]:
    return lambda: Processes(rank, count, "run")


class Told(dict[str, list[Any]]):
    """What a reward function logs."""

    def log(self, name: str, value: object) -> None:
        self.setdefault(name, []).append(value)


# ------------------------------------------------------------------------------------------ what is asked


@both_kinds
@pytest.mark.parametrize("prompts", [CHATS, TEXTS], ids=["chats", "texts"])
def test_the_service_is_asked_what_trl_generated_from_and_sampled(
    kind: Kind, prompts: Dataset, service: GatheringService, tmp_path: Path
) -> None:
    sampled: list[list[int]] = []

    def heard(completion_ids: list[list[int]], **_others: object) -> list[float]:
        sampled.extend(completion_ids)
        return [0.0] * len(completion_ids)

    reward = kind(service.url, tiny_tokenizer(), 4, on_failure="raise")
    trainer = stock_trainer(tmp_path, reward, heard, prompts=prompts)
    trainer.train()
    groups = [group for request in service.requests for group in request.groups]
    assert [completion.ids for group in groups for completion in group.completions] == sampled
    generated_from, *_ = trainer._tokenize_prompts(list(prompts["prompt"]))
    assert all(group.prompt_ids in generated_from for group in groups)
    assert len(service.requests) == 3, "one request per call"


def test_settings_of_the_chat_template_reach_it(service: GatheringService) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ mood }}{{ messages[0]['content'] }}"
    reward = VigorReward(service.url, tokenizer, 1, chat_template_kwargs={"mood": "Smile! "})
    call(reward, prompts=[[{"role": "user", "content": "1+1"}]], ids=[[50, EOS]])
    assert tokenizer.decode(service.requests[0].groups[0].prompt_ids or []) == "Smile! 1+1"


def test_a_completion_that_ends_with_an_end_of_sequence_stopped(service: GatheringService) -> None:
    call(VigorReward(service.url, tiny_tokenizer(), 2), prompts=["1"] * 2, ids=[[5, EOS], [5, 6]])
    call(VigorReward(service.url, tiny_tokenizer(), 2, eos_token_ids=[6]), prompts=["1"] * 2, ids=[[5, EOS], [5, 6]])
    reasons = [[item.finish_reason for item in request.groups[0].completions] for request in service.requests]
    assert reasons == [["stop", "length"], ["length", "stop"]]


@both_kinds
def test_scores_of_other_tokens_than_were_sampled_are_refused(kind: Kind, service: GatheringService) -> None:
    service.miscounts = True
    reward = kind(service.url, tiny_tokenizer(), 2, on_failure="raise")
    with pytest.raises(WrongAnswerError, match="completion 0: the service scored 99 tokens of the 1 that were sampled"):
        call(reward, prompts=["1"] * 2, ids=[[5], [6]])


def test_scores_must_come_from_the_weights_of_this_step(service: GatheringService) -> None:
    class Weights:
        is_training = True

        def at(self, step: int) -> PublishResult:
            return PublishResult(100 + step, "xxh3-128:" + "a" * 32, sent_bytes=0, num_changed_tensors=0)

    reward = VigorReward(service.url, tiny_tokenizer(), 2, weights=Weights(), on_failure="raise")
    with pytest.raises(VigorError, match="weight_version 7 instead of 105"):
        call(reward, prompts=["1"] * 2, ids=[[5], [6]])
    assert service.requests[0].weight_digest == "xxh3-128:" + "a" * 32


@pytest.mark.parametrize(("is_training", "sizes"), [(True, [4]), (False, [2, 2])])
def test_groups_of_an_evaluation_may_have_another_size(
    is_training: bool, sizes: list[int], service: GatheringService
) -> None:
    class Weights:
        def at(self, step: int) -> PublishResult:
            raise AssertionError(step)

    weights = Weights()
    weights.is_training = is_training  # pyright: ignore[reportAttributeAccessIssue] - the fake's only state
    reward = VigorReward(service.url, tiny_tokenizer(), 4, num_generations_eval=2, weights=weights)  # pyright: ignore[reportArgumentType]
    call(reward, prompts=["1"] * 4, ids=[[5], [6], [7], [8]], trainer_state=None)
    assert [len(group.completions) for group in service.requests[0].groups] == sizes


# ---------------------------------------------------------------------------------- groups across processes


@both_kinds
async def test_groups_that_lie_across_processes_meet_in_the_service(kind: Kind, service: GatheringService) -> None:
    ids = [[number] for number in (30, 10, 20, 5, 9, 7, 8, 6, 1, 2, 3, 4)]
    prompts = [str(position // 4) for position in range(12)]

    async def rewards(rank: int) -> list[float]:
        reward = kind(service.url, tiny_tokenizer(), 4, processes=place(rank, 2), on_failure="raise")
        mine = slice(6 * rank, 6 * rank + 6)
        return await asyncio.to_thread(call, reward, prompts=prompts[mine], ids=ids[mine])

    first, second = list(await asyncio.gather(rewards(0), rewards(1)))
    assert first + second == pytest.approx([-1, 1 / 3, -1 / 3, 1, -1, 1 / 3, -1 / 3, 1, 1, 1 / 3, -1 / 3, -1])
    assert {(sample.group, sample.index) for sample in service.samples} == {
        ("run/step5/call1/1", index) for index in range(4)
    }
    assert sorted(group.id or "" for request in service.requests for group in request.groups if group.id) == [
        "run/step5/call1/0",
        "run/step5/call1/2",
    ]


def test_every_call_at_a_step_asks_of_groups_of_its_own(service: GatheringService) -> None:
    reward = VigorReward(service.url, tiny_tokenizer(), 1, processes=place(0, 1))
    for _ in range(2):
        call(reward, prompts=["1"], ids=[[5]])
    assert [request.groups[0].id for request in service.requests] == ["run/step5/call1/0", "run/step5/call2/0"]


@both_kinds
def test_a_group_whose_others_do_not_come_is_not_ranked(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with gathering_service(gather_seconds=0.1) as service:
        reward = kind(service.url, tiny_tokenizer(), 4, processes=place(0, 2))
        assert call(reward, prompts=["1"] * 2, ids=[[5], [6]]) == [None, None]
    assert "GroupIncompleteError" in caplog.text


def test_more_waiting_samples_than_connections_are_refused(service: GatheringService) -> None:
    reward = VigorReward(service.url, tiny_tokenizer(), 202, processes=place(0, 2))
    with pytest.raises(ValueError, match="101 completions of this process belong to groups"):
        call(reward, prompts=["1"] * 101, ids=[[5]] * 101)
    assert service.paths == []


# ------------------------------------------------------------------------------------------------ failures


@both_kinds
def test_a_call_that_could_not_be_scored_has_no_rewards_and_says_why(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    connect = partial(AsyncVigorClient, max_retries=0)
    told = Told()
    reward = kind(CLOSED_PORT_URL, tiny_tokenizer(), 2, connect=connect)
    with caplog.at_level(logging.WARNING):
        answer = call(reward, prompts=["1"] * 2, ids=[[5], [6]], log_metric=told.log)
    assert (answer, told) == ([None, None], {})
    assert "no rewards for" in caplog.text
    assert "UnreachableError" in caplog.text


@both_kinds
def test_a_run_may_insist_on_its_rewards(kind: Kind) -> None:
    connect = partial(AsyncVigorClient, max_retries=0)
    reward = kind(CLOSED_PORT_URL, tiny_tokenizer(), 2, connect=connect, on_failure="raise")
    with pytest.raises(UnreachableError):
        call(reward, prompts=["1"] * 2, ids=[[5], [6]])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_trl_goes_on_without_the_rewards_of_a_failed_call(tmp_path: Path) -> None:
    reward = VigorReward(CLOSED_PORT_URL, tiny_tokenizer(), 4, connect=partial(AsyncVigorClient, max_retries=0))
    trainer = stock_trainer(tmp_path, reward, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_groups_of_several_prompts_are_refused(service: GatheringService) -> None:
    with pytest.raises(ValueError, match="group 0 mixes completions of different prompts"):
        call(VigorReward(service.url, tiny_tokenizer(), 2), prompts=["1", "2"], ids=[[5], [6]])


@pytest.mark.parametrize("column", ["image", "images", "environments"])
def test_what_is_not_text_is_refused(column: str, service: GatheringService) -> None:
    with pytest.raises(ValueError, match=f"TRL passes {column}$"):
        call(VigorReward(service.url, tiny_tokenizer(), 1), prompts=["1"], ids=[[5]], **{column: [object()]})


def test_a_completion_that_ends_with_any_end_of_the_trainer_stopped(service: GatheringService) -> None:
    class Trainer:
        eos_token_ids = (EOS, 6)

        def log_metric(self, name: str, value: float) -> None: ...

    reward = VigorReward(service.url, tiny_tokenizer(), 3)
    call(reward, prompts=["1"] * 3, ids=[[5, EOS], [5, 6], [5, 7]], log_metric=Trainer().log_metric)
    completions = service.requests[0].groups[0].completions
    assert [completion.finish_reason for completion in completions] == ["stop", "stop", "length"]


@both_kinds
def test_a_trainer_that_renders_its_prompts_otherwise_is_refused(
    kind: Kind, service: GatheringService, tmp_path: Path
) -> None:
    reward = kind(service.url, tiny_tokenizer(), 4, on_failure="raise")
    trainer = stock_trainer(tmp_path, reward, chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(ValueError, match=r"renders prompts with chat_template_kwargs {'enable_thinking': False}: give"):
        trainer.train()
    assert service.requests == []


@pytest.mark.parametrize("name", ["tools", "rollout_func"])
def test_a_trainer_whose_prompts_are_not_told_is_refused(name: str, service: GatheringService) -> None:
    class Trainer:
        def log_metric(self, name: str, value: float) -> None: ...

    trainer = Trainer()
    setattr(trainer, name, [print])
    reward = VigorReward(service.url, tiny_tokenizer(), 1)
    with pytest.raises(ValueError, match=f"the trainer has {name}, about which TRL tells"):
        call(reward, prompts=["1"], ids=[[5, EOS]], log_metric=trainer.log_metric)


def test_completions_with_tools_are_refused(service: GatheringService) -> None:
    turns = [{"role": "assistant", "content": ""}, {"role": "tool", "content": "2"}]
    reward = VigorReward(service.url, tiny_tokenizer(), 1)
    with pytest.raises(ValueError, match="which tokens a tool wrote"):
        reward(prompts=[[{"role": "user", "content": "1+1"}]], completions=[turns], completion_ids=[[5]])


def test_another_number_of_generations_in_evaluation_needs_weights() -> None:
    with pytest.raises(ValueError, match="give the WeightPublisher as weights"):
        VigorReward(CLOSED_PORT_URL, tiny_tokenizer(), 4, num_generations_eval=2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"num_generations": 0}, "give 1 or more"),
        ({"num_generations": 4, "num_generations_eval": 0}, "give 1 or more"),
        ({"num_generations": 4, "on_failure": "zero"}, "on_failure is 'zero'; give 'none' or 'raise'"),
    ],
)
def test_arguments_that_say_nothing_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        VigorReward(CLOSED_PORT_URL, tiny_tokenizer(), **arguments)


# ------------------------------------------------------------------------------------------- how TRL uses them


def test_norms_and_weights_are_logged(service: GatheringService) -> None:
    told = Told()
    reward = VigorReward(service.url, tiny_tokenizer(), 2)
    call(reward, prompts=["1"] * 2, ids=[[5], [8]], log_metric=told.log, log_extra=told.log)
    assert told == {
        "scaled_grad_norm": [[5.0, 8.0]],
        "rank": [[1.0, 2.0]],
        "vigor/weight_version": [7.0],
        "vigor/num_unscored": [0.0],
        "vigor/mean_scaled_grad_norm": [6.5],
        "vigor/mean_length": [1.0],
        "vigor/mean_logprob": [-1.0],
        "vigor/mean_entropy": [2.0],
        "vigor/self_certainty": [3.0],
    }


@both_kinds
def test_functions_are_picklable_and_named_by_what_is_ranked(kind: Kind, service: GatheringService) -> None:
    reward = kind(service.url, tiny_tokenizer(), 2, reward="entropy", on_failure="raise")
    copy = pickle.loads(pickle.dumps(reward))  # noqa: S301 - our own bytes
    assert copy.__name__ == "entropy"
    assert call(copy, prompts=["1"] * 2, ids=[[8], [5]], trainer_state=None) == [-1, 1]
    assert service.requests[0].reward == "entropy"


async def test_a_thread_that_runs_an_event_loop_may_call_the_blocking_function(service: GatheringService) -> None:
    reward = VigorReward(service.url, tiny_tokenizer(), 2, on_failure="raise")
    assert reward(prompts=["1"] * 2, completions=["a", "b"], completion_ids=[[8], [5]]) == [-1, 1]
