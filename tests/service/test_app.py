import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import LiveService, live_service
from tests.support.waiting import wait_until
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.service import Health, ModelInfo
from vigor_client.schemas.weights import WeightsInfo
from vigor_service.errors import StartupError
from vigor_service.http.problems import PROBLEMS
from vigor_service.runtime import LoadedModel

GROUP = {"prompt_ids": [1], "completions": [[2]]}
TEXT_GROUP = {"prompt": "a", "completions": ["b"]}  # not answered without a thread


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("staging")) as running:
        yield running


def test_until_the_model_is_loaded_probes_and_scoring_say_so(tmp_path: Path) -> None:
    gate = threading.Event()

    def load() -> LoadedModel:
        assert gate.wait(20)
        return LoadedModel(FakeScorer(), None)

    with live_service(tmp_path, load_model=load, wait_ready=False) as service:
        ready, scored = service.http.get("/readyz"), service.score(groups=[GROUP])
        assert (ready.status_code, ready.json()["reason"]) == (503, "loading")
        assert (scored.status_code, scored.json()["code"]) == (503, "loading")
        assert ready.json()["phase"] == scored.json()["phase"] == "importing_libraries"
        assert ready.json()["detail"].startswith("the model is being loaded: importing torch and transformers (")
        assert int(ready.headers["Retry-After"]) == int(scored.headers["Retry-After"]) > 0
        assert service.http.get("/healthz").status_code == 200
        assert service.http.get("/v1/model").json()["code"] == "loading"
        gate.set()
        wait_until(lambda: service.http.get("/readyz").status_code == 200)
        assert service.score(groups=[GROUP]).status_code == 200


def test_a_model_that_does_not_load_is_reported_and_unhealthy(tmp_path: Path) -> None:
    def load() -> LoadedModel:
        raise StartupError("no such model")

    with live_service(tmp_path, load_model=load, wait_ready=False) as service:
        wait_until(lambda: service.runtime.load_error is not None)
        health = service.http.get("/healthz")
        assert (health.status_code, health.json()["reason"]) == (503, "unhealthy")
        assert service.http.get("/readyz").status_code == 503


def test_draining_refuses_new_requests_with_retry_after(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        service.runtime.drain_from_signal()
        wait_until(lambda: service.http.get("/readyz").status_code == 503)
        refused = service.score(groups=[GROUP])
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) > 0
        assert service.http.get("/healthz").status_code == 200


def test_what_is_served_is_described(service: LiveService) -> None:
    assert Health.model_validate(service.http.get("/healthz").json()).status == "ok"
    model = ModelInfo.model_validate(service.http.get("/v1/model").json())
    assert (model.model, model.num_parameters, model.norm_probes) == ("fake", 643, 5)
    assert [(rule.rule, rule.num_parameters) for rule in model.rules] == [("embedding", 1), ("vector", 1)]
    weights = WeightsInfo.model_validate(service.http.get("/v1/weights").json())
    assert (weights.weight_version, weights.state, weights.num_tensors, weights.dtype) == (0, "ready", 2, "float32")
    tensors = service.http.get("/v1/weights/tensors").json()
    assert tensors["weight_digest"] == weights.weight_digest
    assert [(item["name"], item["aliases"]) for item in tensors["tensors"]] == [
        ("embed.weight", ["head.weight"]),
        ("norm.weight", []),
    ]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/score/", 404, "not_found"),
        ("GET", "/v1/score", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("POST", "/v1/weights", 405, "method_not_allowed"),
        ("GET", "/v1/weights/updates/none", 404, "not_found"),
        ("GET", "/v1/weights/updates/%2e%2e%2f", 404, "not_found"),
    ],
)
def test_an_unknown_path_or_method_is_a_problem(
    service: LiveService, method: str, path: str, status: int, code: str
) -> None:
    answer = service.http.request(method, path)
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = Problem.model_validate(answer.json())
    assert (answer.status_code, problem.status, problem.code) == (status, status, code)
    assert ("Allow" in answer.headers) == (status == 405)


def test_a_wrong_method_is_told_all_that_the_path_has(service: LiveService) -> None:
    assert service.http.options("/v1/weights/updates/none").headers["Allow"] == "DELETE, GET, HEAD, OPTIONS"


def test_a_sane_request_id_is_echoed_and_others_are_replaced(service: LiveService) -> None:
    echoed = service.http.get("/healthz", headers={"X-Request-Id": "run7/step-3:q=1"})
    assert echoed.headers["X-Request-Id"] == "run7/step-3:q=1"
    for odd in ("", "with space", "é", "x" * 129, "a\tb"):
        answer = service.http.get("/nowhere", headers=[(b"X-Request-Id", odd.encode("latin-1"))])
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])


def test_a_bug_is_a_problem_with_a_request_id_and_no_trace(tmp_path: Path, text_log: pytest.LogCaptureFixture) -> None:
    with live_service(tmp_path) as service:
        service.runtime.serving.scoring.preparation.close()  # whatever comes now is a bug
        with text_log.at_level(logging.ERROR):
            answer = service.score(groups=[TEXT_GROUP])
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert answer.headers["X-Request-Id"] == answer.json()["request_id"]
        assert "Traceback" not in answer.text
        assert answer.json()["request_id"] in text_log.text


def test_metrics_count_requests_by_route_and_code(service: LiveService) -> None:
    def counted(route: str, code: int) -> float:
        labels = {"route": route, "code": str(code)}
        value = service.runtime.metrics.registry.get_sample_value("vigor_requests_total", labels)
        assert value is not None, labels
        return value

    for code in (200, 401, 403, 409, 499, 504):
        assert counted("/v1/weights/updates/{update_id}/commit", code) == 0
    before = counted("/v1/score", 200), counted("/v1/score", 422), counted("unmatched", 413)
    service.score(groups=[GROUP])
    service.score(groups=[])
    service.http.get("/nowhere")
    assert (counted("/v1/score", 200), counted("/v1/score", 422)) == (before[0] + 1, before[1] + 1)
    assert counted("unmatched", 404) >= 1


def _metrics(service: LiveService) -> str:
    answer = service.http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    return answer.text


def test_every_metric_carries_the_prefix(service: LiveService) -> None:
    names = re.findall(r"^# TYPE (\S+)", _metrics(service), re.M)
    assert len(names) > 10
    assert [name for name in names if not name.startswith("vigor_")] == []


def test_the_description_resolves_and_documents_bodies_and_problems(service: LiveService) -> None:
    document = service.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(schemas)
    score = document["paths"]["/v1/score"]["post"]
    body = score["requestBody"]["content"]["application/json"]["schema"]
    assert schemas[body["$ref"].rpartition("/")[2]]["examples"]
    assert {"200", "400", "409", "413", "415", "422", "429", "500", "503", "504"} <= set(score["responses"])
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            for status, response in operation["responses"].items():
                assert status < "400" or _is_problem(response) or _is_outcome(response)


def _is_problem(response: dict[str, dict[str, object]]) -> bool:
    return list(response["content"]) == ["application/problem+json"]


def test_every_error_of_the_service_has_a_place_in_the_table() -> None:
    from vigor_service import errors

    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ServiceError) and value is not errors.ServiceError
    }
    assert classes == set(PROBLEMS)


def _is_outcome(response: dict[str, Any]) -> bool:
    """Whether an answer is no problem document but says itself that it did not work: a probe, or a call of SGLang's."""
    return any(name in json.dumps(response) for name in ("Health", "Outcome"))
