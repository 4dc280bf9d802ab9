"""verl's reward manager and advantage estimator, on data as verl's agent loop and reward loop hand it over.

Shapes from `experimental/agent_loop/agent_loop.py` and `experimental/reward_loop/` of verl 1dda039 (2026-08).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tests.client.integrations.gathering_service import GatheringService, gathering_service
from vigor_client.integrations.verl import MAX_CONCURRENT_SAMPLES, Reward, VigorRewardManager, vigor_advantage

PAD = 0


@dataclass
class Item:
    batch: dict[str, torch.Tensor]
    non_tensor_batch: dict[str, Any]


def row(prompt: list[int], response: list[int], *, width: int = 0, **more: Any) -> list[Item]:  # noqa: ANN401
    """A sample: prompt padded on the left and response on the right to ``width``, as in a batch; or not at all."""
    left, right = [PAD] * (width - len(prompt)), [PAD] * (width - len(response))
    attention = [0] * len(left) + [1] * (len(prompt) + len(response)) + [0] * len(right)
    tensors = {"prompts": left + prompt, "responses": response + right, "attention_mask": attention}
    tensors |= {name: value for name, value in more.items() if name == "response_mask"}
    others = {name: value for name, value in more.items() if name != "response_mask"}
    return [Item({name: torch.tensor(value) for name, value in tensors.items()}, {"uid": "a", **others})]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatheringService]:
    with gathering_service() as running:
        monkeypatch.setenv("VIGOR_URL", running.url)
        yield running


def rewards(*samples: list[Item]) -> list[Reward]:
    async def run() -> list[Reward]:
        manager = VigorRewardManager(config=None, tokenizer=None, compute_score=None, reward_router_address=None)
        return list(await asyncio.gather(*(manager.run_single(sample) for sample in samples)))

    return asyncio.run(run())


def test_ids_go_without_their_padding(service: GatheringService) -> None:
    streamed, batched = rewards(row([1, 2], [5, 6]), row([1, 2], [5, 6], width=4))
    assert streamed == batched
    assert streamed["reward_score"] == -11.0
    for request in service.requests:
        [group] = request.groups
        assert (group.prompt_ids, group.completions[0].ids) == ([1, 2], [5, 6])


def test_one_manager_serves_one_event_loop_after_another(service: GatheringService) -> None:
    manager = VigorRewardManager()
    num_samples = MAX_CONCURRENT_SAMPLES + 6  # so that some wait

    async def run() -> list[Reward]:
        return list(await asyncio.gather(*(manager.run_single(row([1], [5])) for _ in range(num_samples))))

    assert asyncio.run(run()) == asyncio.run(run())
    assert len(service.requests) == 2 * num_samples


def test_tokens_that_a_tool_wrote_are_masked_or_refused(service: GatheringService) -> None:
    rewards(row([1], [5, 6, 7], width=4, response_mask=[1, 0, 1, 0], __num_turns__=4))
    assert service.requests[0].groups[0].completions[0].mask == [1, 0, 1]
    with pytest.raises(ValueError, match="which tokens of several turns the policy wrote"):
        rewards(row([1], [5, 6, 7], __num_turns__=4))
    with pytest.raises(ValueError, match="a trajectory of 2 sequences"):
        rewards(row([1], [5]) * 2)


def test_a_failure_is_no_number_under_the_same_keys(
    service: GatheringService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    [scored] = rewards(row([1], [5]))
    monkeypatch.setenv("VIGOR_URL", f"{service.url}/elsewhere")
    [failed] = rewards(row([1], [5]))
    assert math.isnan(failed["reward_score"])
    assert all(math.isnan(value) for value in failed["reward_extra_info"].values())
    assert failed["reward_extra_info"].keys() == scored["reward_extra_info"].keys()
    assert "a sample has no reward: ProblemError" in caplog.text


def test_the_url_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIGOR_URL", raising=False)
    with pytest.raises(ValueError, match="Set VIGOR_URL"):
        VigorRewardManager()


def advantages(norms: list[float], uids: list[str]) -> list[float]:
    """As verl calls the estimator: the reward stands at the last token of each response."""
    mask = torch.tensor([[1, 1, 0]] * len(norms))
    token_level = torch.zeros(len(norms), 3)
    token_level[:, 1] = -torch.tensor(norms)
    index = np.array(uids, dtype=object)
    result, returns = vigor_advantage(token_level_rewards=token_level, response_mask=mask, index=index, config=None)
    assert torch.equal(result, returns)
    assert torch.equal(result[:, 0], result[:, 1])
    assert not result[:, 2].any()
    return result[:, 0].tolist()


def test_advantages_are_normalised_ranks_within_each_uid() -> None:
    ranked = torch.tensor([1.0, 0.0, -1.0])
    best, middle, worst = (ranked / (ranked.std() + 1e-4)).tolist()
    found = advantages([10, 300, 20, 7, 30, 5], ["a", "b", "a", "b", "a", "b"])
    assert found == pytest.approx([best, worst, middle, middle, worst, best])


def test_what_has_no_norm_is_left_out_and_so_is_what_is_left_alone() -> None:
    found = advantages([10, math.nan, 20, 3], ["a", "a", "a", "b"])
    pair = 1 / (math.sqrt(2) + 1e-4)
    assert found == pytest.approx([pair, 0, -pair, 0])


def test_equal_norms_share_their_advantage() -> None:
    assert advantages([4, 4], ["a", "a"]) == [0, 0]
