"""OpenRLHF's and slime's calls, with bodies as their versions 0.11 (and 0.9.1) and of 2026-08 send them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live_service import LiveService, live_service
from tests.support.tiny_models import tiny_tokenizer
from tests.support.waiting import DEADLINE_SECONDS, wait_until

OPENRLHF = "/openrlhf/get_reward?group_size=3"
SLIME = "/slime/reward?group_size=3"
PROMPT = "What is 3?"
RESPONSES = (" 3", " 3 is 3", " four")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path, score_cache_entries=1000) as running:
        yield running


def _openrlhf(service: LiveService, *responses: str, prompt: str = PROMPT) -> httpx.Response:
    body = {
        "query": [prompt + response for response in responses],
        "prompts": [prompt] * len(responses),
        "labels": [None] * len(responses),
    }
    return service.http.post(OPENRLHF, json=body)


def _slime(service: LiveService, response: str, prompt: object = PROMPT) -> httpx.Response:
    return service.http.post(SLIME, json={"prompt": prompt, "response": response, "label": "3"})


def _expected(service: LiveService, prompt: dict[str, object]) -> list[dict[str, Any]]:
    group = {**prompt, "completions": [{"text": text, "finish_reason": "length"} for text in RESPONSES]}
    return service.score(groups=[group]).json()["groups"][0]["completions"]


def _prompt_ids() -> dict[str, object]:
    return {"prompt_ids": list(tiny_tokenizer().encode(PROMPT, add_special_tokens=False))}


def _waiting(service: LiveService, *, samples: int) -> None:
    wait_until(lambda: service.runtime.metrics.registry.get_sample_value("vigor_gathering_samples") == samples)


def _json(pending: list[Future[httpx.Response]]) -> list[Any]:
    return [future.result(DEADLINE_SECONDS).json() for future in pending]


def test_openrlhf_sends_one_sample_a_call_and_gets_its_rank_within_the_prompt(service: LiveService) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = _json([pool.submit(_openrlhf, service, response) for response in RESPONSES])
    expected = _expected(service, _prompt_ids())
    assert [answer["rewards"] for answer in answers] == [[score["reward"]] for score in expected]
    assert [answer["scores"] for answer in answers] == [[(score["reward"] + 1) / 2] for score in expected]
    assert [answer["extra_logs"]["vigor_scaled_grad_norm"] for answer in answers] == [
        [score["scaled_grad_norm"]] for score in expected
    ]
    assert all(answer["extra_logs"]["vigor_failed"] == [0.0] for answer in answers)


def test_a_response_ends_where_its_end_is_written_out_and_nothing_is_appended_to_one_that_was_cut_off(
    service: LiveService,
) -> None:
    answer = _openrlhf(service, " 3<|im_end|>", " 3", " four").json()
    assert answer["extra_logs"]["vigor_num_tokens"] == [3.0, 2.0, 5.0]


def test_openrlhf_may_send_many_samples_in_one_call(service: LiveService) -> None:
    answer = _openrlhf(service, *RESPONSES).json()
    assert answer["rewards"] == [score["reward"] for score in _expected(service, _prompt_ids())]
    assert [len(values) for values in answer["extra_logs"].values()] == [3, 3, 3]


def test_a_server_that_gets_no_sample_answers_with_none(service: LiveService) -> None:
    assert _openrlhf(service).json() == {"rewards": [], "scores": [], "extra_logs": {}}


def test_a_group_that_is_not_whole_gets_the_worst_reward_and_a_flag(tmp_path: Path) -> None:
    with live_service(tmp_path, group_timeout_seconds=0.3) as service:
        answer = _openrlhf(service, " 3").json()
    assert (answer["rewards"], answer["scores"], answer["extra_logs"]["vigor_failed"]) == ([-1.0], [0.0], [1.0])


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_requests=1) as service, ThreadPoolExecutor(4) as pool:
        service.scorer.gate.clear()
        scoring = pool.submit(service.norms)
        wait_until(service.scorer.is_scoring.is_set)
        pending = [pool.submit(_openrlhf, service, response) for response in RESPONSES]
        _refused = service.score(groups=[{"prompt_ids": [1], "completions": [[2]]}])
        assert _refused.status_code == 429
        service.scorer.gate.set()
        scoring.result(DEADLINE_SECONDS)
        assert all(answer["extra_logs"]["vigor_failed"] == [0.0] for answer in _json(pending))


def test_slime_gets_a_bare_number(service: LiveService) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = _json([pool.submit(_slime, service, response) for response in RESPONSES])
    assert answers == [score["reward"] for score in _expected(service, _prompt_ids())]


def test_slime_may_send_chat_messages(service: LiveService) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    with ThreadPoolExecutor(3) as pool:
        answers = _json([pool.submit(_slime, service, response, messages) for response in RESPONSES])
    assert answers == [score["reward"] for score in _expected(service, {"messages": messages})]


def test_slime_gets_refusals_as_they_are(tmp_path: Path) -> None:
    with live_service(tmp_path, group_timeout_seconds=0.3) as service:
        refused = _slime(service, " 3")
    assert (refused.status_code, refused.json()["code"]) == (504, "group_incomplete")


def test_a_prompt_that_comes_more_often_than_a_group_is_large_forms_groups_of_that_size(service: LiveService) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = _json([pool.submit(_slime, service, response) for response in RESPONSES * 2])
    assert len(answers) == 6
    assert sum(answers) == pytest.approx(0)
    _waiting(service, samples=0)


def test_a_sample_whose_caller_left_is_sent_again_and_takes_one_place(service: LiveService) -> None:
    with pytest.raises(httpx.ReadTimeout):
        service.http.post(SLIME, json={"prompt": PROMPT, "response": RESPONSES[0]}, timeout=0.3)
    _waiting(service, samples=0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(_slime, service, RESPONSES[1])
        _waiting(service, samples=1)
        with pytest.raises(httpx.ReadTimeout):
            service.http.post(SLIME, json={"prompt": PROMPT, "response": RESPONSES[0]}, timeout=0.3)
        _waiting(service, samples=1)
        others = [pool.submit(_slime, service, response) for response in (RESPONSES[0], RESPONSES[2])]
        rewards = _json([others[0], first, others[1]])
    assert rewards == [score["reward"] for score in _expected(service, _prompt_ids())]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/openrlhf/get_reward", {"query": ["a"], "prompts": ["a"]}, ["query", "group_size"]),
        (OPENRLHF, {"query": ["a", "b"], "prompts": ["a"]}, []),
        (OPENRLHF, {"query": ["b"], "prompts": ["a"]}, []),
        (OPENRLHF, {"query": ["a"]}, ["prompts"]),
        ("/slime/reward?group_size=0", {"prompt": "a", "response": "b"}, ["query", "group_size"]),
        (SLIME, {"prompt": "", "response": "b"}, ["prompt"]),
        (SLIME, {"response": "b"}, ["prompt"]),
    ],
)
def test_what_is_not_understood_is_refused_by_its_place(
    service: LiveService, path: str, body: dict[str, object], place: list[str]
) -> None:
    refused = service.http.post(path, json=body)
    assert refused.status_code == 422
    assert place in [error["loc"] for error in refused.json()["errors"]]
