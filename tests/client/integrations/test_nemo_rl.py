"""NeMo-RL's rewards, on batches as its rollouts hand them to its training loop.

Shapes from `run_multi_turn_rollout` in `nemo_rl/experience/rollouts.py` of NeMo-RL 00617d3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.client.integrations.gathering_service import GatheringService, gathering_service
from vigor_client.integrations.nemo_rl import vigor_rewards


def message(role: str, *ids: int) -> dict[str, Any]:
    return {"role": role, "content": "what nobody reads", "token_ids": torch.tensor(ids, dtype=torch.int64)}


def sample(prompt: int, *answer: int) -> list[dict[str, Any]]:
    """One turn; the environment's last word comes after it."""
    return [message("system", 9), message("user", prompt), message("assistant", *answer), message("environment", 8)]


def batch_of(logs: list[list[dict[str, Any]]], idx: list[int], truncated: list[bool] | None = None) -> dict[str, Any]:
    return {"message_log": logs, "idx": idx, "truncated": torch.tensor(truncated or [False] * len(logs))}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatheringService]:
    with gathering_service() as running:
        monkeypatch.setenv("VIGOR_URL", running.url)
        yield running


def test_samples_of_one_prompt_are_ranked_together_in_the_order_of_the_batch(service: GatheringService) -> None:
    logs = [sample(1, 5), sample(2, 30), sample(1, 4, 2), sample(2, 7), sample(1, 3)]
    rewards = vigor_rewards(batch_of(logs, [10, 11, 10, 11, 10]))
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == [0, -1, -1, 1, 1]
    [request] = service.requests
    assert [group.prompt_ids for group in request.groups] == [[9, 1], [9, 2]]
    assert [completion.ids for completion in request.groups[0].completions] == [[5], [4, 2], [3]]
    assert request.groups[0].completions[0].mask is None


def test_an_answer_that_was_cut_off_is_said_to_be(service: GatheringService) -> None:
    vigor_rewards(batch_of([sample(1, 5), sample(1, 6)], [0, 0], [False, True]))
    assert [completion.finish_reason for completion in service.requests[0].groups[0].completions] == ["stop", "length"]


def test_what_the_environment_wrote_between_two_turns_is_masked(service: GatheringService) -> None:
    log = [*sample(1, 5, 6)[:3], message("environment", 7, 8), message("assistant", 4), message("environment", 3)]
    vigor_rewards(batch_of([log], [0]))
    [completion] = service.requests[0].groups[0].completions
    assert (completion.ids, completion.mask) == ([5, 6, 7, 8, 4], [1, 1, 0, 0, 1])


def test_samples_that_are_no_group_are_refused_by_their_place(service: GatheringService) -> None:
    with pytest.raises(
        ValueError, match=r"samples \[0, 1\], which have one idx, mixes completions of different prompts"
    ):
        vigor_rewards(batch_of([sample(1, 5), sample(2, 5)], [0, 0]))
    with pytest.raises(ValueError, match="sample 1 has no message of the assistant"):
        vigor_rewards(batch_of([sample(1, 5), sample(1)[:2]], [0, 0]))
    assert not service.requests


def test_the_url_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIGOR_URL", raising=False)
    with pytest.raises(ValueError, match="Set VIGOR_URL"):
        vigor_rewards(batch_of([sample(1, 5)], [0]))
