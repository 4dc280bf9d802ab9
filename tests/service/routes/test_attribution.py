import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.fake_scorer import WAIT_SECONDS
from tests.support.live_service import LiveService, live_service
from tests.support.pushing import push
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.waiting import wait_until
from vigor_client import AsyncVigorClient, AttributionRequest, AttributionResponse, SequenceTooLongError, VigorClient
from vigor_client.schemas.attribution import MAX_ATTRIBUTED_TOKENS
from vigor_service.engine.engine import Engine
from vigor_service.runtime import LoadedModel

ASKED = {"prompt_ids": [1, 2], "completion": {"ids": [3, 4, 5], "mask": [1, 0, 1]}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging")) as running:
        yield running


def attribute(service: LiveService, **changes: object) -> httpx.Response:
    return service.http.post("/v1/attribution", json={**ASKED, **changes})


def queued_requests(service: LiveService) -> float | None:
    return service.runtime.metrics.registry.get_sample_value("vigor_queued_requests")


def test_the_answer_has_the_shares_of_every_token_and_layer_and_names_the_weights(service: LiveService) -> None:
    answer = AttributionResponse.model_validate(attribute(service).json())
    weights = service.http.get("/v1/weights").json()
    assert (answer.model, answer.weight_version, answer.weight_digest) == ("fake", 0, weights["weight_digest"])
    assert [token.id for token in answer.tokens] == [1, 2, 3, 4, 5]
    assert [token.part for token in answer.tokens] == ["prompt"] * 2 + ["completion"] * 3
    assert [token.in_loss for token in answer.tokens] == [False, False, True, False, True]
    assert [token.share for token in answer.tokens] == pytest.approx([token.id / 15 for token in answer.tokens])
    assert [(layer.name, layer.share) for layer in answer.layers] == [("embedding and head", 1.0), ("norm", 0.0)]
    assert [item.has_positions for layer in answer.layers for item in layer.parameters] == [True, False]
    assert answer.num_tokens == 2
    assert answer.scaled_grad_norm == pytest.approx((answer.grad_norm or math.nan) * math.sqrt(2))
    assert service.scorer.thread_names == {"compute_0"}


def test_a_real_model_is_attributed_and_its_norm_is_the_scored_one(tmp_path: Path) -> None:
    def load_model() -> LoadedModel:
        return LoadedModel(Engine(tiny_model("mixtral"), name="tiny"), tiny_tokenizer())  # pyright: ignore[reportArgumentType] - see __main__

    prompt = {"messages": [{"role": "user", "content": "3 + 4?"}]}
    completion = {"text": "7 é", "finish_reason": "stop"}
    with live_service(tmp_path, load_model=load_model) as service:
        scored = service.score(groups=[{**prompt, "completions": [completion]}]).json()["groups"][0]["completions"][0]
        answer = service.http.post("/v1/attribution", json={**prompt, "completion": completion}).json()
    assert answer["grad_norm"] == pytest.approx(scored["grad_norm"], rel=1e-5)
    assert answer["scaled_grad_norm"] == pytest.approx(scored["scaled_grad_norm"], rel=1e-5)
    shares = [token["share"] for token in answer["tokens"]]
    assert sum(shares) + answer["unresolved_share"] == pytest.approx(1, abs=1e-5)
    assert answer["unresolved_share"] > 0.01
    assert sum(layer["share"] for layer in answer["layers"]) == pytest.approx(1, abs=1e-5)
    text = "".join(token["text"] for token in answer["tokens"] if token["part"] == "prompt")
    assert text == "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    assert [token["text"] for token in answer["tokens"]][-1] == "<|im_end|>"


def test_both_clients_ask_for_an_attribution(service: LiveService) -> None:
    with VigorClient(str(service.http.base_url)) as client:
        by_mapping = client.attribute(ASKED)
        by_model = client.attribute(AttributionRequest.model_validate(ASKED))
        with pytest.raises(SequenceTooLongError):
            client.attribute({"prompt_ids": [1] * 80, "completion": [2]})
        with pytest.raises(ValueError, match=r"^has no prompt"):
            client.attribute({"completion": [2]})

    async def ask() -> AttributionResponse:
        async with AsyncVigorClient(str(service.http.base_url)) as client:
            return await client.attribute(ASKED)

    assert by_mapping.tokens == by_model.tokens == asyncio.run(ask()).tokens


@pytest.mark.parametrize(
    ("changes", "status", "code", "places"),
    [
        ({"completion": {"ids": [3], "mask": [0]}}, 422, "invalid_request", [["completion"]]),
        ({"completion": []}, 422, "invalid_request", [["completion"]]),
        ({"completion": [999]}, 422, "invalid_request", [["completion", "ids", 0]]),
        ({"prompt_ids": [999]}, 422, "invalid_request", [["prompt_ids", 0]]),
        ({"completions": [[3]]}, 422, "invalid_request", [["completions"]]),
        ({"reward": "vigor"}, 422, "invalid_request", [["reward"]]),
        ({"completion": [3] * 80}, 413, "sequence_too_long", [["completion"]]),
        ({"weight_version": 7}, 409, "weight_version_mismatch", []),
        ({"weight_digest": "xxh3-128:" + "0" * 32}, 409, "weight_digest_mismatch", []),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    service: LiveService, changes: dict[str, object], status: int, code: str, places: list[object]
) -> None:
    refused = attribute(service, **changes)
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert [error["loc"] for error in refused.json()["errors"]] == places


def test_more_tokens_than_can_be_looked_at_are_refused(tmp_path: Path) -> None:
    def load_model() -> LoadedModel:
        return LoadedModel(Engine(tiny_model(max_position_embeddings=4096), name="tiny"), None)

    with live_service(tmp_path, load_model=load_model) as service:
        refused = attribute(service, prompt_ids=[1] * MAX_ATTRIBUTED_TOKENS, completion=[2])
        attributed = attribute(service)
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (413, "sequence_too_long")
    assert (problem["length"], problem["limit"]) == (MAX_ATTRIBUTED_TOKENS + 1, MAX_ATTRIBUTED_TOKENS)
    assert {token["text"] for token in attributed.json()["tokens"]} == {None}


def test_it_waits_for_the_weights_it_asks_for_and_for_what_came_before(tmp_path: Path) -> None:
    with live_service(tmp_path) as service, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(attribute, service, weight_version=5, wait_seconds=20)
        wait_until(lambda: queued_requests(service) == 1)
        assert push(service.http, {name: tensor + 1 for name, tensor in service.scorer.parameters.items()}, version=5)
        assert waiting.result(WAIT_SECONDS).json()["weight_version"] == 5

        service.scorer.gate.clear()
        scoring = pool.submit(service.score, groups=[{"prompt_ids": [1], "completions": [[2]]}])
        wait_until(service.scorer.is_scoring.is_set)
        behind = pool.submit(attribute, service)
        wait_until(lambda: queued_requests(service) == 2)
        assert not behind.done()
        service.scorer.gate.set()
        assert scoring.result(WAIT_SECONDS).status_code == behind.result(WAIT_SECONDS).status_code == 200


def test_it_takes_a_place_in_the_queue_and_has_a_time_limit(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_requests=1, request_timeout_seconds=0.5) as service:
        service.scorer.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(attribute, service)
            wait_until(service.scorer.is_scoring.is_set)
            refused = attribute(service)
            assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
            assert (late.result(WAIT_SECONDS).status_code, late.result().json()["code"]) == (504, "deadline_exceeded")
        service.scorer.gate.set()
        wait_until(lambda: attribute(service).status_code == 200)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(MemoryError("secret"), 413, "sequence_too_long"), (RuntimeError("secret"), 500, "internal")],
)
def test_a_failure_costs_one_request_and_tells_no_secrets(
    service: LiveService, error: Exception, status: int, code: str
) -> None:
    service.scorer.fail_scoring = error
    failed = attribute(service)
    service.scorer.fail_scoring = None
    assert (failed.status_code, failed.json()["code"]) == (status, code)
    assert "secret" not in failed.text
    assert attribute(service).status_code == 200


def test_a_service_with_keys_wants_the_score_key(tmp_path: Path) -> None:
    with live_service(tmp_path, score_key="scorer", publish_key="publisher") as service:
        assert attribute(service).status_code == 401
        allowed = service.http.post("/v1/attribution", json=ASKED, headers={"Authorization": "Bearer scorer"})
        assert allowed.status_code == 200
