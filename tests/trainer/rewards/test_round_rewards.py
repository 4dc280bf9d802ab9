"""The function that TRL calls."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from tests.trainer.fake_service import FakeService
from vigor_client import Group, MixedUpAnswerError, ScoreResponse, UnexpectedAnswerError, VigorClient
from vigor_client.integrations.trl.errors import WrongAnswerError
from vigor_client.schemas.scoring import ScoreRequest
from vigor_trainer.monitoring.completions import CompletionRecord
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.rewards.custom import CustomReward
from vigor_trainer.rewards.groups import ScoreOptions
from vigor_trainer.rewards.round_rewards import RoundRewards
from vigor_trainer.rewards.rules import RuleOptions
from vigor_trainer.weights.publisher import Publisher


class Call:
    """One call of the reward function, for two prompts of two completions."""

    def __init__(self, service: FakeService, options: ScoreOptions | None = None, *names: Any) -> None:  # noqa: ANN401
        self.service = service
        self.names = names or ("vigor",)
        self.records: list[RoundRecord] = []
        self.completions: list[CompletionRecord] = []
        self.metrics: dict[str, float] = {}
        self.table: dict[str, list[float | None]] = {}
        self.options = options or ScoreOptions()

    def record(self, record: RoundRecord, completions: Sequence[CompletionRecord]) -> None:
        self.records.append(record)
        self.completions += completions

    def __call__(self, **columns: object) -> list[float | None]:
        """What the first reward function returns."""
        return self.all(**columns)[0]

    def all(self, **columns: object) -> list[list[float | None]]:
        """What each of them returns, called in turn as TRL does."""
        given: dict[str, Any] = {
            "prompts": ["1+1", "1+1", "2+2", "2+2"],
            "completions": ["2", "it is 3", "4", "so 4"],
            "completion_ids": [[9], [1, 2, 3], [7], [8, 2]],
            "prompt_ids": [[1], [1], [2], [2]],
            "loss_mask": [None] * 4,
            "finish_reason": ["stop", "length", "stop", "stop"],
            "group_size": [2] * 4,
            "mode": ["train"] * 4,
            "generate_seconds": [2.5] * 4,
            "trainer_state": SimpleNamespace(global_step=5),
            "log_metric": self.metrics.__setitem__,
            "log_extra": self.table.__setitem__,
        }
        given.update(columns)
        with Publisher(self.service) as publisher:
            publisher.begin(lambda: {"weight": torch.ones(1)}, 5)
            rewards = RoundRewards(self.service, publisher, self.options, self.names, record=self.record)
            return [function(**given) for function in rewards.functions]


def test_the_smaller_norm_of_each_group_is_rewarded() -> None:
    service = FakeService()
    assert Call(service)() == [-1.0, 1.0, 1.0, -1.0]
    [request] = service.requests
    assert [[completion.finish_reason for completion in group.completions] for group in request.groups] == [
        ["stop", "length"],
        ["stop", "stop"],
    ]


def test_the_request_carries_the_options_and_the_publication() -> None:
    service = FakeService()
    Call(service, ScoreOptions(rules=RuleOptions(ties="ordinal"), truncated="worst", wait_seconds=3.0), "entropy")()
    [request] = service.requests
    assert (request.reward, request.ties, request.truncated, request.wait_seconds) == ("logprob", "ordinal", "worst", 3)
    assert (request.weight_version, request.weight_digest) == (5, service.weight_digest)


def test_the_answers_are_counted_and_never_rewarded() -> None:
    call = Call(FakeService())
    rewards = call(answer=["2", "2", "4", None])
    assert rewards == call(answer=["0", "0", "0", "0"])
    assert [record.accuracy for record in call.records] == [2 / 3, 0.0]
    messages = [[{"role": "assistant", "content": text}] for text in ("2", "2", "4", "4")]
    call(completions=messages, answer=["2", "2", "4", "5"])
    assert call.records[-1].accuracy == 0.75


def test_a_round_is_recorded_and_logged() -> None:
    call = Call(FakeService())
    call()
    [record] = call.records
    assert (record.step, record.mode, record.weight_version) == (5, "train", 5)
    assert (record.num_groups, record.num_completions, record.num_unscored) == (2, 4, 0)
    assert record.mean_length == 7 / 4
    assert record.mean_scaled_grad_norm == (9 + 6 + 7 + 10) / 4
    assert record.reward_length_correlation == pytest.approx(0.3162, abs=1e-4)
    assert record.accuracy is None
    assert (record.duplicate_share, record.tie_share) == (0.0, 0.0)
    assert record.norm_spread == pytest.approx(((9 - 6) / 7.5 + (10 - 7) / 8.5) / 2)
    assert call.metrics["vigor/norm_spread"] == record.norm_spread
    assert record.sent_bytes == 1000
    assert (record.generate_seconds, record.publish_seconds) == (2.5, 0.75)
    assert call.metrics["vigor/mean_length"] == 7 / 4
    assert "vigor/accuracy" not in call.metrics


def test_the_services_own_time_is_recorded_of_all_requests_of_a_round() -> None:
    def refuse_pairs(request: ScoreRequest) -> None:
        if len(request.groups) > 1:
            raise UnexpectedAnswerError("too large", status=413, request_id="r")

    call = Call(FakeService())
    call.service.on_score, call.service.compute_seconds = refuse_pairs, 1.5
    call()
    [record] = call.records
    assert (record.score_compute_seconds, record.score_queue_seconds) == (3.0, 0.0)


def test_each_completion_is_recorded_with_all_that_is_known_of_it() -> None:
    call = Call(FakeService(), None, "vigor", "verifier")
    call.all(answer=["2", "2", "4", "4"])
    assert [(record.group, record.index) for record in call.completions] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    second = call.completions[1]
    assert (second.step, second.mode, second.weight_version) == (5, "train", 5)
    assert (second.prompt, second.completion, second.completion_ids) == ("1+1", "it is 3", [1, 2, 3])
    assert (second.finish_reason, second.num_tokens, second.status) == ("length", 3, "ok")
    assert (second.scaled_grad_norm, second.rank, second.rewards) == (6, 1, {"vigor": 1, "verifier": 0})
    assert (second.mean_logprob, second.p_norm, second.sum_logprob) == (-1, 0.06, -6)
    assert (second.final_answer, second.is_correct) == ("3", False)


def test_norms_and_ranks_are_in_trls_table_of_completions() -> None:
    call = Call(FakeService())
    call()
    assert call.table == {"scaled_grad_norm": [9, 6, 7, 10], "rank": [2, 1, 1, 2]}


def test_without_norms_there_are_no_ranks_of_them() -> None:
    call = Call(FakeService(), None, "entropy")
    call.all()
    assert [record.rank for record in call.completions] == [None] * 4
    assert call.table == {}


def test_an_answer_that_does_not_fit_gives_no_reward() -> None:
    class Miscounting(FakeService):
        def score(self, groups: Sequence[Group], **insisted: Any) -> ScoreResponse:  # noqa: ANN401 - as its base
            response = super().score(groups, **insisted)
            [first, *_] = response.groups[0].completions
            wrong = response.groups[0].model_copy(
                update={"completions": [first.model_copy(update={"num_tokens": 99})] * 2}
            )
            return response.model_copy(update={"groups": [wrong, response.groups[1]]})

    call = Call(Miscounting())
    with pytest.raises(WrongAnswerError, match="99 tokens"):
        call()
    assert call.records == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"weight_version": 6}, "weight_version 6 instead of 5"),
        ({"weight_digest": "xxh3-128:" + "0" * 32}, "weight_digest"),
        ({"reward": "entropy"}, "reward 'entropy' instead of 'vigor'"),
        ({"groups": []}, "0 groups instead of 2"),
    ],
)
def test_a_service_that_answers_something_else_gives_no_reward(change: dict[str, Any], complaint: str) -> None:
    class OverHttp(FakeService):
        """Its answers pass through the real client."""

        def score(self, groups: Sequence[Group], **insisted: Any) -> ScoreResponse:  # noqa: ANN401 - as its base
            def answer(_: httpx.Request) -> httpx.Response:
                response = FakeService.score(self, groups, **insisted).model_copy(update=change)
                return httpx.Response(200, json=response.model_dump())

            with VigorClient("http://service", max_retries=0, transport=httpx.MockTransport(answer)) as client:
                return client.score(groups, **insisted)

    call = Call(OverHttp())
    with pytest.raises((UnexpectedAnswerError, MixedUpAnswerError), match=complaint):
        call()
    assert call.records == []


def test_all_rewards_of_a_round_come_from_one_request() -> None:
    call = Call(FakeService(), None, "vigor", "p_norm", "verifier")
    assert call.all(answer=["2", "2", "5", "4"]) == [[-1, 1, 1, -1], [1, -1, -1, 1], [1, 0, 0, 1]]
    assert len(call.service.requests) == len(call.records) == 1


@pytest.mark.parametrize(
    ("names", "compute"),
    [(["vigor", "entropy"], ("norm", "signals")), (["entropy"], ("signals",)), (["verifier", "random"], ("signals",))],
)
def test_a_gradient_is_asked_for_only_where_a_reward_needs_it(names: list[str], compute: tuple[str, ...]) -> None:
    call = Call(FakeService(), None, *names)
    call.all(answer=["2", "2", "4", "4"])
    [request] = call.service.requests
    assert request.compute == compute


def test_a_function_of_the_users_own_gets_the_columns_of_trl() -> None:
    def length(completion_ids: list[list[int]], prompts: list[str], **_columns: object) -> list[float | None]:
        assert prompts == ["1+1", "1+1", "2+2", "2+2"]
        return [float(len(ids)) for ids in completion_ids]

    call = Call(FakeService(), None, CustomReward("length", length), "vigor")
    assert call.all() == [[1, 3, 1, 2], [-1, 1, 1, -1]]
    assert len(call.records) == 1
