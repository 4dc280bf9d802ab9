"""Groups that come sample by sample, over real HTTP, from many threads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.live_service import LiveService, live_service
from tests.support.pushing import push
from tests.support.tiny_models import tiny_tokenizer
from tests.support.waiting import DEADLINE_SECONDS, wait_until

_COMPLETIONS = [[3, 4], [5], [6, 7, 8], [9, 9]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path, score_cache_entries=10_000) as running:
        yield running


def _sample(index: int, group: str = "g", **changes: object) -> dict[str, object]:
    return {
        "group": group,
        "group_size": len(_COMPLETIONS),
        "index": index,
        "prompt_ids": [1, 2],
        "completion": _COMPLETIONS[index],
        **changes,
    }


def _send(service: LiveService, sample: dict[str, object]) -> httpx.Response:
    return service.http.post("/v1/score/sample", json=sample)


def _waiting(service: LiveService, *, samples: int) -> None:
    """Wait until so many samples wait for others."""
    wait_until(lambda: service.runtime.metrics.registry.get_sample_value("vigor_gathering_samples") == samples)


def _answers(pending: list[Future[httpx.Response]]) -> list[dict[str, Any]]:
    return [future.result(DEADLINE_SECONDS).json() for future in pending]


def test_each_caller_gets_what_a_whole_group_gets(service: LiveService) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = _answers([pool.submit(_send, service, _sample(index)) for index in (2, 0, 3, 1)])
    whole = service.score(groups=[{"prompt_ids": [1, 2], "completions": _COMPLETIONS}]).json()
    assert [answer["index"] for answer in answers] == [2, 0, 3, 1]
    by_index = sorted(answers, key=lambda answer: answer["index"])
    assert [answer["completion"] for answer in by_index] == whole["groups"][0]["completions"]
    assert {answer["weight_digest"] for answer in answers} == {whole["weight_digest"]}
    _waiting(service, samples=0)


def test_a_sample_gets_the_ids_that_were_scored_where_it_asks_for_them(service: LiveService) -> None:
    asked = {"group": "ids", "group_size": 1, "index": 0, "prompt": "3 + 4 =", "completion": "7"}
    answer = _send(service, {**asked, "return_token_ids": True}).json()
    tokenizer = tiny_tokenizer()
    assert answer["prompt_ids"] == tokenizer.encode("3 + 4 =")
    assert answer["completion"]["ids"] == [*tokenizer.encode("7"), 257]


def test_a_sample_says_how_its_messages_are_rendered(service: LiveService) -> None:
    messages = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "It is "}]
    asked = {"group": "chat", "group_size": 1, "index": 0, "messages": messages, "completion": "7"}
    refused = _send(service, asked)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    answer = _send(service, {**asked, "continue_final_message": True, "return_token_ids": True}).json()
    expected = tiny_tokenizer().apply_chat_template(messages, continue_final_message=True, tokenize=False)
    assert tiny_tokenizer().decode(answer["prompt_ids"]) == expected
    tools = {**asked, "group": "tools", "messages": messages[:1], "tools": [{"type": "function"}]}
    assert _send(service, tools).json()["errors"][0]["loc"] == ["tools"]


def test_samples_are_computed_while_their_group_gathers(service: LiveService) -> None:
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(index)) for index in range(3)]
        wait_until(lambda: sum(map(len, service.scorer.batches)) == 3)
        pending.append(pool.submit(_send, service, _sample(3)))
        assert all("completion" in answer for answer in _answers(pending))
    assert sum(map(len, service.scorer.batches)) == 4


def test_all_of_a_group_are_scored_under_the_weights_of_its_end(service: LiveService) -> None:
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(index)) for index in range(3)]
        _waiting(service, samples=3)
        tensors = {name: tensor * 2 for name, tensor in service.scorer.parameters.items()}
        push(service.http, tensors, version=7)
        pending.append(pool.submit(_send, service, _sample(3)))
        answers = _answers(pending)
    whole = service.score(groups=[{"prompt_ids": [1, 2], "completions": _COMPLETIONS}]).json()
    assert {answer["weight_version"] for answer in answers} == {7}
    assert [answer["completion"] for answer in answers] == whole["groups"][0]["completions"]


def test_a_sample_that_is_sent_again_gets_the_same_answer_and_costs_nothing(service: LiveService) -> None:
    with ThreadPoolExecutor(5) as pool:
        pending = [pool.submit(_send, service, _sample(index)) for index in (0, 0, 1, 2, 3)]
        answers = _answers(pending)
    assert answers[0] == answers[1]
    num_batches = len(service.scorer.batches)
    assert _send(service, _sample(0)).json() == answers[0]
    assert len(service.scorer.batches) == num_batches


def _leave(service: LiveService, sample: dict[str, object]) -> None:
    """Send a sample, and close the connection while its group gathers."""
    with pytest.raises(httpx.ReadTimeout):
        service.http.post("/v1/score/sample", json=sample, timeout=0.3)


def _gauge(service: LiveService, name: str) -> float | None:
    return service.runtime.metrics.registry.get_sample_value(f"vigor_{name}")


def test_who_left_may_come_back_and_finds_the_others_waiting(service: LiveService) -> None:
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(1))]
        _waiting(service, samples=1)
        _leave(service, _sample(0))
        _waiting(service, samples=2)
        pending += [pool.submit(_send, service, _sample(index)) for index in (2, 3)]
        answers = _answers(pending)
    assert _send(service, _sample(0)).json()["weight_digest"] == answers[0]["weight_digest"]


def test_a_group_is_dropped_with_its_place_when_its_last_caller_leaves(service: LiveService) -> None:
    _leave(service, _sample(0))
    _waiting(service, samples=0)
    assert _gauge(service, "gathering_groups") == _gauge(service, "queued_requests") == 0
    assert _gauge(service, "queued_tokens") == 0
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(index)) for index in range(4)]
        assert all("completion" in answer for answer in _answers(pending))


def test_a_group_of_which_one_caller_still_waits_is_kept(service: LiveService) -> None:
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(0))]
        _waiting(service, samples=1)
        _leave(service, _sample(0))  # the same sample's first try, say
        pending += [pool.submit(_send, service, _sample(index)) for index in range(1, 4)]
        assert all("completion" in answer for answer in _answers(pending))


def test_a_whole_group_leaves_the_queue_when_all_of_its_callers_leave(service: LiveService) -> None:
    service.scorer.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda index: _leave(service, _sample(index)), range(4)):
            pass
    wait_until(lambda: _gauge(service, "queued_requests") == 0)
    service.scorer.gate.set()
    with ThreadPoolExecutor(4) as pool:
        answers = _answers([pool.submit(_send, service, _sample(index)) for index in range(4)])
    assert all("completion" in answer for answer in answers)


def test_a_burst_of_groups_that_never_complete_gives_its_places_back(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_requests=8) as service, ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda number: _leave(service, _sample(0, group=f"g{number}")), range(8)):
            pass
        wait_until(lambda: _gauge(service, "queued_requests") == 0)
        assert service.score(groups=[{"prompt_ids": [1, 2], "completions": _COMPLETIONS}]).status_code == 200


def test_a_sample_reserves_its_own_tokens_and_not_those_of_its_whole_group(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_tokens=40) as service, ThreadPoolExecutor(1) as pool:
        first = pool.submit(_send, service, _sample(0, group_size=512))
        _waiting(service, samples=1)
        assert _gauge(service, "queued_tokens") == 4
        assert service.score(groups=[{"prompt_ids": [1, 2], "completions": _COMPLETIONS}]).status_code == 200
        service.runtime.drain_from_signal()
        assert first.result(DEADLINE_SECONDS).status_code == 503


def test_what_completes_a_group_is_taken_though_the_queue_has_no_token_left(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_tokens=10) as service, ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(index)) for index in (0, 2)]
        _waiting(service, samples=2)
        assert _gauge(service, "queued_tokens") == 9
        assert _send(service, _sample(0, group="other")).status_code == 429
        pending += [pool.submit(_send, service, _sample(index)) for index in (1, 3)]
        assert all("completion" in answer for answer in _answers(pending))
    assert _gauge(service, "queued_tokens") == 0


def test_a_group_is_computed_once_also_without_a_cache_of_scores(tmp_path: Path) -> None:
    with live_service(tmp_path, score_cache_entries=0) as service, ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(_send, service, _sample(index)) for index in range(3)]
        wait_until(lambda: sum(map(len, service.scorer.batches)) == 3)
        pending.append(pool.submit(_send, service, _sample(3)))
        answers = _answers(pending)
        assert sum(map(len, service.scorer.batches)) == 4
        whole = service.score(groups=[{"prompt_ids": [1, 2], "completions": _COMPLETIONS}]).json()
    assert [answer["completion"] for answer in answers] == whole["groups"][0]["completions"]


def test_a_group_that_is_not_whole_in_time_fails_for_all_who_wait(tmp_path: Path) -> None:
    with live_service(tmp_path, group_timeout_seconds=0.5) as service, ThreadPoolExecutor(3) as pool:
        answers = _answers([pool.submit(_send, service, _sample(index)) for index in range(3)])
        assert {(answer["status"], answer["code"]) for answer in answers} == {(504, "group_incomplete")}
        assert {(answer["came"], answer["group_size"]) for answer in answers} == {(3, 4)}
        assert service.runtime.metrics.registry.get_sample_value("vigor_queued_requests") == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"group_size": 5}, "differs in group_size"),
        ({"prompt_ids": [1, 3]}, "differs in prompt"),
        ({"reward": "entropy"}, "differs in reward"),
        ({"index": 0, "completion": [9]}, "sample 0 was sent before"),
    ],
)
def test_a_sample_that_contradicts_its_group_is_refused_and_the_group_goes_on(
    service: LiveService, changes: dict[str, object], named: str
) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(_send, service, _sample(0))
        _waiting(service, samples=1)
        refused = _send(service, _sample(1) | changes)
        assert (refused.status_code, refused.json()["code"]) == (409, "group_conflict")
        assert named in refused.json()["detail"]
        pending = [first, *(pool.submit(_send, service, _sample(index)) for index in range(1, 4))]
        assert all("completion" in answer for answer in _answers(pending))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"completion": [999]}, ["completion", "ids", 0]),
        ({"prompt_ids": [999]}, ["prompt_ids", 0]),
        ({"index": 4}, []),
        ({"group": ""}, ["group"]),
    ],
)
def test_a_wrong_sample_is_refused_by_its_own_places_and_opens_no_group(
    service: LiveService, changes: dict[str, object], place: list[str | int]
) -> None:
    refused = _send(service, _sample(0) | changes)
    assert refused.status_code == 422, refused.text
    assert [error["loc"] for error in refused.json()["errors"]] == [place]
    _waiting(service, samples=0)


def test_a_sample_that_is_too_long_is_refused_alone(service: LiveService) -> None:
    refused = _send(service, _sample(0, completion=[3] * 100))
    assert (refused.status_code, refused.json()["code"]) == (413, "sequence_too_long")
    assert refused.json()["errors"][0]["loc"] == ["completion"]


def test_a_failure_of_the_whole_group_reaches_every_caller_and_may_be_tried_again(service: LiveService) -> None:
    sample = [_sample(index, weight_version=3) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = _answers([pool.submit(_send, service, item) for item in sample])
        assert {answer["code"] for answer in answers} == {"weight_version_mismatch"}
        push(service.http, {n: t * 2 for n, t in service.scorer.parameters.items()}, version=3)
        answers = _answers([pool.submit(_send, service, item) for item in sample])
        assert {answer["weight_version"] for answer in answers} == {3}


def test_a_full_queue_refuses_new_groups_and_lets_open_ones_become_whole(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_requests=1) as service, ThreadPoolExecutor(4) as pool:
        first = pool.submit(_send, service, _sample(0))
        _waiting(service, samples=1)
        refused = _send(service, _sample(0, group="other"))
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert "Retry-After" in refused.headers
        pending = [first, *(pool.submit(_send, service, _sample(index)) for index in range(1, 4))]
        assert all("completion" in answer for answer in _answers(pending))


def test_groups_that_wait_when_the_service_drains_are_told_at_once(service: LiveService) -> None:
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(_send, service, _sample(0))
        _waiting(service, samples=1)
        service.runtime.drain_from_signal()
        answer = pending.result(DEADLINE_SECONDS)
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")


@pytest.mark.slow
def test_two_hundred_callers_form_their_groups_in_any_order(service: LiveService) -> None:
    samples = [
        _sample(index % 4, f"q-{number}", prompt_ids=[number + 1, 2], completion=[number + 3, index + 3], group_size=8)
        | {"index": index}
        for number in range(25)
        for index in range(8)
    ]
    random.Random(0).shuffle(samples)
    missing = samples.pop()
    limits = httpx.Limits(max_connections=250)
    with (
        httpx.Client(base_url=service.http.base_url, timeout=60, limits=limits) as http,
        ThreadPoolExecutor(220) as pool,
    ):
        pending = [pool.submit(http.post, "/v1/score/sample", json=sample) for sample in samples]
        again = [pool.submit(http.post, "/v1/score/sample", json=sample) for sample in samples[:20]]
        _waiting(service, samples=7)
        pending.append(pool.submit(http.post, "/v1/score/sample", json=missing))
        answers = {(a["group"], a["index"]): a["completion"] for a in _answers(pending)}
        assert all(a["completion"] == answers[a["group"], a["index"]] for a in _answers(again))
    for number in range(25):
        completions = [[number + 3, index + 3] for index in range(8)]
        whole = service.score(groups=[{"prompt_ids": [number + 1, 2], "completions": completions}]).json()
        assert [answers[f"q-{number}", index] for index in range(8)] == whole["groups"][0]["completions"]
