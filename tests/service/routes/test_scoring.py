import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from tests.support.fake_scorer import MAX_SEQUENCE_TOKENS, MEASURED_BATCH_TOKENS, WAIT_SECONDS
from tests.support.live_service import LiveService, live_service
from tests.support.pushing import push
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.waiting import wait_until
from vigor_client.schemas.scoring import ScoreResponse
from vigor_service.engine.engine import Engine
from vigor_service.runtime import LoadedModel

GROUP = {"prompt_ids": [1], "completions": [[2]]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging")) as running:
        yield running


def _queued_requests(service: LiveService) -> float | None:
    return service.runtime.metrics.registry.get_sample_value("vigor_queued_requests")


def test_groups_are_answered_in_the_order_they_were_asked(service: LiveService) -> None:
    groups = [
        {"id": "a", "prompt_ids": [1, 2], "completions": [[3, 4], [5], [3, 4]]},
        {"prompt_ids": [9], "completions": [{"ids": [], "finish_reason": "length"}]},
    ]
    answer = service.score(groups=groups)
    response = ScoreResponse.model_validate(answer.json())
    assert [group.id for group in response.groups] == ["a", None]
    first, second = response.groups
    assert [item.num_tokens for item in first.completions] == [2, 1, 2]
    assert first.completions[0] == first.completions[2]
    assert sorted(item.rank for item in first.completions) in ([1, 2.5, 2.5], [1.5, 1.5, 3])
    assert [item.status for item in second.completions] == ["empty"]
    assert response.usage.deduplicated_completions == 1
    assert (response.weight_version, response.model) == (0, "fake")


def test_text_and_messages_equal_the_ids_they_stand_for(service: LiveService) -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "3 + 4?"}]
    prompt_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    by_hand = {"prompt_ids": prompt_ids, "completions": [[*tokenizer.encode("7"), 257], tokenizer.encode("8")]}
    as_text = {"messages": messages, "completions": ["7", {"text": "8", "finish_reason": "length"}]}
    answers = [service.score(groups=[group]).json()["groups"] for group in (by_hand, as_text)]
    assert answers[0] == answers[1]


def test_the_ids_that_were_scored_come_back_where_they_are_asked_for(service: LiveService) -> None:
    tokenizer = tiny_tokenizer()
    group = {"prompt": "3 + 4 =", "completions": ["7", [5, 6]]}
    (told,) = service.score(groups=[group], return_token_ids=True).json()["groups"]
    (untold,) = service.score(groups=[group]).json()["groups"]
    assert told["prompt_ids"] == tokenizer.encode("3 + 4 =")
    assert [completion["ids"] for completion in told["completions"]] == [[*tokenizer.encode("7"), 257], [5, 6]]
    assert "prompt_ids" not in untold
    assert not any("ids" in completion for completion in untold["completions"])


def test_a_sequence_that_does_not_fit_into_memory_is_413_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    with live_service(tmp_path, max_batch_tokens=100) as service, ThreadPoolExecutor(2) as pool:
        service.scorer.fitting_tokens = 20
        long = {"prompt_ids": [1, 2], "completions": [[2], [3] * 30, [3] * 30]}
        refused, answered = pool.map(lambda groups: service.score(groups=groups), ([GROUP, long], [GROUP]))
        assert answered.status_code == 200
        assert refused.status_code == 413
        problem = refused.json()
        assert (problem["code"], problem["title"]) == ("sequence_too_long", "A sequence does not fit into memory")
        assert [problem[name] for name in ("group", "completion", "length", "limit")] == [1, 1, 32, 16]
        assert [error["loc"] for error in problem["errors"]] == [["groups", 1, "completions", n] for n in (1, 2)]
        assert problem["errors"][0]["msg"] == "32 tokens with its prompt, 16 are known to fit into memory"


def test_the_batch_budget_is_measured_where_the_model_computes_and_shown(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        assert service.http.get("/v1/model").json()["max_batch_tokens"] == MEASURED_BATCH_TOKENS
        assert service.scorer.thread_names == {"compute_0"}
    with live_service(tmp_path, max_batch_tokens=77) as service:
        assert service.http.get("/v1/model").json()["max_batch_tokens"] == 77


@pytest.mark.parametrize(
    ("body", "status", "places"),
    [
        ({}, 422, [["groups"]]),
        ({"groups": []}, 422, [["groups"]]),
        ({"groups": [GROUP], "extra": 1}, 422, [["extra"]]),
        ({"groups": [{"prompt_ids": [1], "completions": []}]}, 422, [["groups", 0, "completions"]]),
        ({"groups": [{**GROUP, "prompt": "x"}]}, 422, [["groups", 0]]),
        ({"groups": [{"prompt_ids": [1], "completions": [{"ids": [1], "text": "x"}]}]}, 422, None),
        ({"groups": [GROUP], "wait_seconds": 601}, 422, [["wait_seconds"]]),
        ({"groups": [GROUP], "reward": "best"}, 422, [["reward"]]),
        (
            {"groups": [{"prompt_ids": [1.5], "completions": [["x"], [-1], {"ids": [1], "mask": [2]}]}], "ties": 0},
            422,
            [
                ["groups", 0, "prompt_ids", 0],
                ["groups", 0, "completions", 0, "ids", 0],
                ["groups", 0, "completions", 1, "ids", 0],
                ["groups", 0, "completions", 2, "mask", 0],
                ["ties"],
            ],
        ),
        (
            {"groups": [{"prompt_ids": [320], "completions": [[2], [999]]}]},
            422,
            [["groups", 0, "prompt_ids", 0], ["groups", 0, "completions", 1, "ids", 0]],
        ),
        (
            {"groups": [{"prompt_ids": [1], "completions": [[2] * MAX_SEQUENCE_TOKENS]}]},
            413,
            [["groups", 0, "completions", 0]],
        ),
    ],
)
def test_every_wrong_place_is_listed_and_nothing_is_scored(
    service: LiveService, body: dict[str, object], status: int, places: list[list[str | int]] | None
) -> None:
    num_batches = len(service.scorer.batches)
    answer = service.score(**body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["errors"]
    if places is not None:
        assert sorted((error["loc"] for error in answer.json()["errors"]), key=str) == sorted(places, key=str)
    assert len(service.scorer.batches) == num_batches


def test_at_most_a_hundred_places_are_listed(service: LiveService) -> None:
    answer = service.score(groups=[{"prompt_ids": [1], "completions": [[999]] * 300}])
    assert len(answer.json()["errors"]) == 100
    assert "300 validation errors" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {"Content-Type": "application/json"}, 400),
        (b"{", {"Content-Type": "application/json"}, 400),
        (b'{"groups": "\xff\xfe"}', {"Content-Type": "application/json"}, 400),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 400),
        (b"null", {"Content-Type": "application/json"}, 422),
        (b"{}", {}, 415),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_body_that_is_no_json_is_refused(
    service: LiveService, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = service.http.post("/v1/score", content=content, headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")


def test_a_body_over_the_limit_is_refused_announced_or_not(tmp_path: Path) -> None:
    with live_service(tmp_path, max_body_bytes=1000) as service:
        headers = {"Content-Type": "application/json"}
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            while sent < 2**22:
                sent += 2**16
                yield b" " * 2**16

        announced = service.http.post("/v1/score", content=b" " * 1001, headers=headers)
        assert (announced.status_code, announced.json()["code"]) == (413, "payload_too_large")
        assert announced.json()["limit"] == 1000
        streamed = service.http.post("/v1/score", content=endless(), headers=headers)
        assert streamed.status_code == 413
        assert service.score(groups=[GROUP]).status_code == 200


def test_weights_that_are_not_served_are_a_conflict_with_have_and_want(service: LiveService) -> None:
    digest = service.http.get("/v1/weights").json()["weight_digest"]
    version = service.score(groups=[GROUP], weight_version=7)
    assert (version.status_code, version.json()["code"]) == (409, "weight_version_mismatch")
    assert (version.json()["have"], version.json()["want"]) == (0, 7)
    other = service.score(groups=[GROUP], weight_version=0, weight_digest="xxh3-128:" + "0" * 32)
    assert (other.status_code, other.json()["code"]) == (409, "weight_digest_mismatch")
    assert other.json()["have"] == digest
    assert service.score(groups=[GROUP], weight_version=0, weight_digest=digest).status_code == 200


def test_a_request_waits_for_the_version_it_asks_for(tmp_path: Path) -> None:
    with live_service(tmp_path) as service, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.score, groups=[GROUP], weight_version=5, wait_seconds=20)
        wait_until(lambda: _queued_requests(service) == 1)
        tensors = {name: tensor + 1 for name, tensor in service.scorer.parameters.items()}
        assert push(service.http, tensors, version=5).status_code == 200
        assert waiting.result(20).json()["weight_version"] == 5


def test_a_full_queue_answers_with_retry_after(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_requests=1) as service, ThreadPoolExecutor(1) as pool:
        service.scorer.gate.clear()
        first = pool.submit(service.score, groups=[GROUP])
        wait_until(service.scorer.is_scoring.is_set)
        refused = service.score(groups=[GROUP])
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        service.scorer.gate.set()
        assert first.result(WAIT_SECONDS).status_code == 200
        assert service.score(groups=[GROUP]).status_code == 200


def test_completions_without_a_token_to_score_take_places_of_the_queue(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_tokens=600) as service, ThreadPoolExecutor(1) as pool:
        service.scorer.gate.clear()
        scored = {"prompt_ids": [1], "completions": [[2], *[{"ids": []}] * 511]}
        first = pool.submit(service.score, groups=[scored])
        wait_until(service.scorer.is_scoring.is_set)
        refused = service.score(groups=[{"prompt_ids": [1], "completions": [{"ids": []}] * 512}])
        service.scorer.gate.set()
        assert (refused.status_code, first.result().status_code) == (429, 200)


def test_a_request_past_its_time_limit_is_given_up(tmp_path: Path) -> None:
    with live_service(tmp_path, request_timeout_seconds=0.2) as service:
        service.scorer.gate.clear()
        late = service.score(groups=[GROUP])
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert _queued_requests(service) == 0


def test_a_client_that_goes_away_takes_its_work_along(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        service.scorer.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(service.score, groups=[GROUP])
            wait_until(service.scorer.is_scoring.is_set)
            with (
                httpx.Client(base_url=service.http.base_url, timeout=0.3) as impatient,
                pytest.raises(httpx.ReadTimeout),
            ):
                impatient.post("/v1/score", json={"groups": [{"prompt_ids": [1], "completions": [[7]]}]})
            wait_until(lambda: _queued_requests(service) == 1)
            service.scorer.gate.set()
            assert first.result(WAIT_SECONDS).status_code == 200
        assert service.score(groups=[{**GROUP, "completions": [[8]]}]).status_code == 200
        assert [item.completion_ids for batch in service.scorer.batches for item in batch] == [(2,), (8,)]
        sample = ("vigor_requests_total", {"route": "/v1/score", "code": "499"})
        wait_until(lambda: service.runtime.metrics.registry.get_sample_value(*sample) == 1)
        assert service.runtime.metrics.registry.get_sample_value("vigor_disconnects_total") == 1


def test_an_engine_that_fails_costs_one_request(service: LiveService) -> None:
    service.scorer.fail_scoring = RuntimeError("CUDA out of memory: secret detail")
    failed = service.score(groups=[GROUP])
    service.scorer.fail_scoring = None
    assert (failed.status_code, failed.json()["code"]) == (500, "internal")
    assert "secret" not in failed.text
    assert service.score(groups=[GROUP]).status_code == 200


def test_the_loop_answers_while_a_batch_runs(tmp_path: Path) -> None:
    with live_service(tmp_path) as service, ThreadPoolExecutor(1) as pool:
        service.scorer.gate.clear()
        running = pool.submit(service.score, groups=[GROUP])
        wait_until(service.scorer.is_scoring.is_set)
        assert service.http.get("/healthz").status_code == 200
        assert service.http.get("/v1/weights").status_code == 200
        service.scorer.gate.set()
        running.result(WAIT_SECONDS)


def test_everything_touches_the_scorer_from_one_thread(service: LiveService) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: service.score(groups=[{"prompt_ids": [n], "completions": [[2]]}]), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert service.scorer.thread_names == {"compute_0"}
    assert threading.current_thread().name != "compute_0"


def test_a_request_that_is_sent_again_with_its_key_gets_the_first_answer(service: LiveService) -> None:
    body = {"groups": [{"prompt_ids": [1, 2], "completions": [[3, 4], [5]]}]}
    first = service.http.post("/v1/score", json=body, headers={"Idempotency-Key": "k1"})
    push(service.http, {name: tensor * 2 for name, tensor in service.scorer.parameters.items()})
    again = service.http.post("/v1/score", json=body, headers={"Idempotency-Key": "k1"})
    assert again.json() == first.json()
    assert service.http.post("/v1/score", json=body).json()["weight_version"] == 1
    other = service.http.post("/v1/score", json={**body, "reward": "entropy"}, headers={"Idempotency-Key": "k1"})
    assert other.status_code == 422
    assert other.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]


def test_one_key_stands_for_one_answer_whole_or_in_lines(service: LiveService) -> None:
    groups = [{"id": f"q{n}", "prompt_ids": [1, 2 + n], "completions": [[3, 4], [5]]} for n in range(3)]
    body, key = {"groups": groups, "return_token_ids": True}, {"Idempotency-Key": "whole or lines"}
    plain = service.http.post("/v1/score", json=body).json()
    in_lines = service.http.post("/v1/score", json=body, headers={**key, "Accept": "application/x-ndjson"})
    push(service.http, {name: tensor * 2 for name, tensor in service.scorer.parameters.items()})
    whole = service.http.post("/v1/score", json=body, headers=key).json()
    assert {**whole, "timing": None} == {**plain, "timing": None}
    again = service.http.post("/v1/score", json=body, headers={**key, "Accept": "application/x-ndjson"})
    assert again.text == in_lines.text


def test_a_token_of_probability_zero_leaves_norms_ranked_and_the_self_certainty_null(tmp_path: Path) -> None:
    model = tiny_model("gptj")
    with torch.no_grad():
        model.get_parameter("lm_head.bias")[300] = -math.inf

    def load_model() -> LoadedModel:
        return LoadedModel(Engine(model, name="masked"), tiny_tokenizer())  # pyright: ignore[reportArgumentType] - see __main__

    groups = [{"prompt_ids": [1, 2], "completions": [[3, 4], [5], [3, 300]]}]
    with live_service(tmp_path, load_model=load_model) as service:
        by_norm, by_certainty = (
            service.score(groups=groups, reward=reward).json()["groups"][0]["completions"]
            for reward in ("vigor", "self_certainty")
        )
    assert [item["status"] for item in by_norm] == ["ok"] * 3
    assert sorted(item["rank"] for item in by_norm) == [1, 2, 3]
    assert [item["mean_logprob"] is None for item in by_norm] == [False, False, True]
    assert [item["self_certainty"] for item in by_norm] == [None] * 3
    assert all(item["mean_entropy"] > 0 for item in by_norm)
    assert [item["status"] for item in by_certainty] == ["nonfinite"] * 3
