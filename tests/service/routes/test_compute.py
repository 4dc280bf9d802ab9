"""What a request asks for is what is computed: norms, signals, log-probabilities of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_service import LiveService, live_service
from vigor_service.engine.sequences import ScoreParts


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path) as running:
        yield running


NORMS = ("grad_norm", "scaled_grad_norm")
SIGNALS = ("mean_logprob", "mean_entropy", "self_certainty", "p_norm", "sum_logprob")


@pytest.mark.parametrize(
    ("compute", "given"),
    [
        (["norm"], NORMS),
        (["signals"], SIGNALS),
        (["norm", "signals"], (*NORMS, *SIGNALS)),
        (["signals", "token_logprobs"], (*SIGNALS, "token_logprobs")),
    ],
)
def test_a_score_holds_what_was_asked_for(service: LiveService, compute: list[str], given: tuple[str, ...]) -> None:
    reward = "vigor" if "norm" in compute else "logprob"
    answer = service.score(groups=[{"prompt_ids": [1], "completions": [[2, 3], [4]]}], compute=compute, reward=reward)
    for completion in answer.json()["groups"][0]["completions"]:
        numbers = {name for name in (*NORMS, *SIGNALS, "token_logprobs") if completion.get(name) is not None}
        assert numbers == set(given)
        assert len(completion.get("token_logprobs") or []) == (
            completion["num_tokens"] if "token_logprobs" in given else 0
        )
    assert service.scorer.parts[-1] == ScoreParts(norm="norm" in compute, token_logprobs="token_logprobs" in compute)


@pytest.mark.parametrize("reward", ["self_certainty", "logprob", "entropy", "p_norm", "sum_logprob"])
def test_every_signal_is_a_reward_without_a_gradient(service: LiveService, reward: str) -> None:
    group = {"prompt_ids": [1], "completions": [[2, 3], [4], [5, 6, 7]]}
    scores = service.score(groups=[group], compute=["signals"], reward=reward).json()["groups"][0]["completions"]
    name = {"logprob": "mean_logprob", "entropy": "mean_entropy"}.get(reward, reward)
    best_first = sorted(scores, key=lambda score: score[name], reverse=reward != "entropy")
    assert [score["rank"] for score in best_first] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compute": ["signals"]}, "needs `norm`; add it to `compute`"),
        ({"compute": ["norm"], "reward": "entropy"}, "needs `signals`; add it to `compute`"),
        ({"compute": ["norm", "norm"]}, "twice"),
        ({"compute": []}, "is empty; give one or more"),
        ({"compute": ["gradient"]}, "'norm', 'signals' or 'token_logprobs'"),
    ],
)
def test_a_reward_that_is_not_computed_is_refused_by_name(
    service: LiveService, options: dict[str, Any], said: str
) -> None:
    answer = service.score(groups=[{"prompt_ids": [1], "completions": [[2]]}], **options)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert said in answer.text
    assert service.scorer.batches == []


def test_samples_of_a_group_share_what_is_computed(service: LiveService) -> None:
    sample = {
        "group": "g",
        "group_size": 2,
        "prompt_ids": [1],
        "reward": "p_norm",
        "compute": ["signals", "token_logprobs"],
    }

    def send(index: int, completion: list[int]) -> dict[str, Any]:
        body = {**sample, "index": index, "completion": completion}
        return service.http.post("/v1/score/sample", json=body).json()["completion"]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(send, range(2), ([2, 3], [4]))
    assert (len(first["token_logprobs"]), len(second["token_logprobs"])) == (2, 1)
    assert {first["rank"], second["rank"]} == {1, 2}
    assert first["grad_norm"] is None
    assert all(not parts.norm for parts in service.scorer.parts)
