"""Every error that the documentation lists is provoked over HTTP, and answered with its status and code."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.fake_scorer import MAX_SEQUENCE_TOKENS, VOCAB_SIZE, FakeScorer
from tests.support.live_service import LiveService, live_service
from tests.support.pushing import UPDATES, announce, open_update, push
from tests.support.waiting import DEADLINE_SECONDS, wait_until
from vigor_client.schemas.problems import Problem
from vigor_client.schemas.service import Health
from vigor_service.engine.interface import Write
from vigor_service.http.problems import PROBLEMS
from vigor_service.runtime import LoadedModel
from vigor_service.scheduling.engine_pool import LocalEngine
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.version import Weights

TABLE = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text().partition("\n## Errors\n")[2]
GROUP = {"prompt_ids": [1, 2], "completions": [[3], [4, 5]]}
SAMPLE = {"group": "g", "group_size": 2, "index": 0, "prompt_ids": [1, 2], "completion": [3]}

Start = Callable[..., AbstractContextManager[LiveService]]
"""Starts a service with these settings."""


class HeldScorer(FakeScorer):
    """Takes other weights when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load = threading.Event()

    def load(self, writes: Iterable[tuple[str, Write]]) -> None:
        assert self.may_load.wait(DEADLINE_SECONDS)
        super().load(writes)


class EndedEngine(LocalEngine):
    """Has ended."""

    num_engines = 0


class LoadedWithoutEngine(LoadedModel):
    """Its engine ends before it computes anything."""

    def engines(self, compute: WorkerThread, weights: Weights) -> EndedEngine:
        return EndedEngine(self.scorer, compute, weights)


# ---------------------------------------------------------------------------- one request to a service as it is


def invalid_json(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.post("/v1/score", content=b"{", headers={"Content-Type": "application/json"})


def invalid_token(start: Start) -> httpx.Response:
    with start() as service:
        return service.score(groups=[{"prompt_ids": [VOCAB_SIZE], "completions": [[1]]}])


def no_key(start: Start) -> httpx.Response:
    with start(score_key="s", publish_key="p") as service:
        return service.score(groups=[GROUP])


def key_of_a_scorer(start: Start) -> httpx.Response:
    with start(score_key="s", publish_key="p") as service:
        return service.http.post(UPDATES, headers={"Authorization": "Bearer s"})


def unknown_update(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.get(f"{UPDATES}/none")


def wrong_method(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.delete("/v1/score")


def unpublished_version(start: Start) -> httpx.Response:
    with start() as service:
        return service.score(groups=[GROUP], weight_version=7)


def other_digest(start: Start) -> httpx.Response:
    with start() as service:
        return service.score(groups=[GROUP], weight_version=0, weight_digest="xxh3-128:" + "0" * 32)


def other_base(start: Start) -> httpx.Response:
    with start() as service:
        return open_update(service.http, announce(b"x"), base_version=7)


def two_updates(start: Start) -> httpx.Response:
    with start() as service:
        open_update(service.http, announce(b"x"))
        return open_update(service.http, announce(b"x"), version=2)


def long_body(start: Start) -> httpx.Response:
    with start(max_body_bytes=10) as service:
        return service.score(groups=[GROUP])


def long_sequence(start: Start) -> httpx.Response:
    with start() as service:
        return service.score(groups=[{"prompt_ids": [1], "completions": [[2] * MAX_SEQUENCE_TOKENS]}])


def long_url(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.get("/" + "x" * 8192)


def many_headers(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.get("/", headers={"X": "x" * 32_768})


def name_of_another_site(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.get("/v1/weights", headers={"Host": "evil.example"})


def no_host(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.get("/v1/weights", headers={"Host": "/"})


def text_body(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.post("/v1/score", content=b"{}", headers={"Content-Type": "text/plain"})


def failing_engine(start: Start) -> httpx.Response:
    with start() as service:
        service.scorer.fail_scoring = RuntimeError("no")
        return service.score(groups=[GROUP])


def late_answer(start: Start) -> httpx.Response:
    with start(request_timeout_seconds=0.1) as service:
        service.scorer.gate.clear()
        return service.score(groups=[GROUP])


def lonely_sample(start: Start) -> httpx.Response:
    with start(group_timeout_seconds=0.1) as service:
        return service.http.post("/v1/score/sample", json=SAMPLE)


def endless_update(start: Start) -> httpx.Response:
    with start(max_upload_bytes=2**62) as service:
        return open_update(service.http, {**announce(b"x"), "num_bytes": 2**52})


# ------------------------------------------------------------------------------------- while something else happens


def contradicting_sample(start: Start) -> httpx.Response:
    with start() as service, ThreadPoolExecutor(2) as pool:
        pool.submit(service.http.post, "/v1/score/sample", json=SAMPLE)
        _wait_for(service, "vigor_gathering_samples", 1)
        answer = service.http.post("/v1/score/sample", json={**SAMPLE, "completion": [9]})
        pool.submit(service.http.post, "/v1/score/sample", json={**SAMPLE, "index": 1})
        return answer


def full_queue(start: Start) -> httpx.Response:
    with start(max_queued_requests=1) as service:
        return _while_one_is_scored(service, lambda: service.score(groups=[GROUP]))


def client_that_leaves(start: Start) -> httpx.Response:
    """Nobody is there to get this answer: the metrics tell of it."""
    with start() as service:
        service.scorer.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            service.http.post("/v1/score", json={"groups": [GROUP]}, timeout=0.2)
        wait_until(lambda: _requests(service, "/v1/score", "499") == 1)
        return _as_answer(499, "client_gone")


def batch_that_does_not_end(start: Start) -> httpx.Response:
    with start(watchdog_seconds=0.05) as service:
        probe = partial(service.http.get, "/healthz")
        return _while_one_is_scored(service, lambda: _first(probe, lambda answer: answer.status_code != 200))


def model_that_loads(start: Start) -> httpx.Response:
    gate = threading.Event()

    def load_model() -> LoadedModel:
        assert gate.wait(DEADLINE_SECONDS)
        return LoadedModel(FakeScorer(), None)

    with start(load_model=load_model, wait_ready=False) as service:
        answer = service.score(groups=[GROUP])
        gate.set()
        return answer


def service_that_ends(start: Start) -> httpx.Response:
    with start() as service:
        service.runtime.drain_from_signal()
        return _first(lambda: service.score(groups=[GROUP]), lambda answer: answer.status_code != 200)


def swap_that_takes_long(start: Start) -> httpx.Response:
    scorer = HeldScorer()
    with start(load_model=lambda: LoadedModel(scorer, None)) as service, ThreadPoolExecutor(1) as pool:
        pool.submit(push, service.http, scorer.parameters)
        answer = _first(partial(service.http.get, "/readyz"), lambda answer: answer.status_code != 200)
        scorer.may_load.set()
        return answer


def swap_that_fails(start: Start) -> httpx.Response:
    with start() as service:
        service.scorer.fail_loading = RuntimeError("no")
        push(service.http, {name: tensor + 1 for name, tensor in service.scorer.parameters.items()})
        return service.score(groups=[GROUP])


def another_number_of_engines(start: Start) -> httpx.Response:
    with start() as service:
        return service.http.put("/v1/engines", json={"num_engines": 2})


def engines_that_have_ended(start: Start) -> httpx.Response:
    load_model = partial(LoadedWithoutEngine, FakeScorer(), None)
    with start(load_model=load_model, wait_ready=False) as service:
        return _first(partial(service.http.get, "/readyz"), lambda answer: _code(answer) != "loading")


def sequence_beyond_memory(start: Start) -> httpx.Response:
    with start() as service:
        service.scorer.fitting_tokens = 8
        return service.score(groups=[{"prompt_ids": [1], "completions": [[2] * 20]}])


PROVOCATIONS: dict[tuple[int, str], list[Callable[[Start], httpx.Response]]] = {
    (400, "invalid_request"): [invalid_json, no_host],
    (401, "unauthenticated"): [no_key],
    (403, "forbidden"): [key_of_a_scorer],
    (404, "not_found"): [unknown_update],
    (405, "method_not_allowed"): [wrong_method],
    (409, "engines_fixed"): [another_number_of_engines],
    (409, "group_conflict"): [contradicting_sample],
    (409, "update_state"): [two_updates],
    (409, "weight_base_mismatch"): [other_base],
    (409, "weight_digest_mismatch"): [other_digest],
    (409, "weight_version_mismatch"): [unpublished_version],
    (413, "payload_too_large"): [long_body],
    (413, "sequence_too_long"): [long_sequence, sequence_beyond_memory],
    (414, "url_too_long"): [long_url],
    (415, "unsupported_media_type"): [text_body],
    (421, "wrong_host"): [name_of_another_site],
    (422, "invalid_request"): [invalid_token],
    (429, "queue_full"): [full_queue],
    (431, "headers_too_large"): [many_headers],
    (499, "client_gone"): [client_that_leaves],
    (500, "internal"): [failing_engine],
    (503, "draining"): [service_that_ends],
    (503, "loading"): [model_that_loads],
    (503, "no_engine"): [engines_that_have_ended],
    (503, "unhealthy"): [batch_that_does_not_end],
    (503, "weights_applying"): [swap_that_takes_long],
    (503, "weights_poisoned"): [swap_that_fails],
    (504, "deadline_exceeded"): [late_answer],
    (504, "group_incomplete"): [lonely_sample],
    (507, "staging_full"): [endless_update],
}
CASES = [
    pytest.param(kind, provoke, id=f"{kind[0]}-{kind[1]}-{provoke.__name__}")
    for kind, ways in PROVOCATIONS.items()
    for provoke in ways
]


@pytest.mark.parametrize(("kind", "provoke"), CASES)
def test_the_error_is_answered_with_its_status_and_code(
    tmp_path: Path, kind: tuple[int, str], provoke: Callable[[Start], httpx.Response]
) -> None:
    answer = provoke(partial(live_service, tmp_path))
    assert (answer.status_code, _code(answer)) == kind
    assert ("Retry-After" in answer.headers) == (kind[0] in (429, 503) or kind == (409, "update_state"))


def test_every_documented_error_has_a_provocation_and_no_other() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", TABLE, re.MULTILINE)
    assert {(int(status), code) for status, code in rows} == set(PROVOCATIONS)


def test_every_error_of_the_service_has_a_provocation() -> None:
    assert {(kind.status, kind.code) for kind in PROBLEMS.values()} <= set(PROVOCATIONS)


# ----------------------------------------------------------------------------------------------------- helpers


def _code(answer: httpx.Response) -> str | None:
    if answer.headers["Content-Type"] == "application/problem+json":
        problem = Problem.model_validate(answer.json())
        assert problem.status == answer.status_code
        return problem.code
    return Health.model_validate(answer.json()).reason


def _while_one_is_scored(service: LiveService, ask: Callable[[], httpx.Response]) -> httpx.Response:
    service.scorer.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(service.score, groups=[{"prompt_ids": [1], "completions": [[2]]}])
        wait_until(service.scorer.is_scoring.is_set)
        try:
            return ask()
        finally:
            service.scorer.gate.set()


def _first(ask: Callable[[], httpx.Response], is_it: Callable[[httpx.Response], bool]) -> httpx.Response:
    answers: list[httpx.Response] = []

    def asked() -> bool:
        answers.append(ask())
        return is_it(answers[-1])

    wait_until(asked)
    return answers[-1]


def _as_answer(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"status": "unavailable", "reason": code})


def _requests(service: LiveService, route: str, code: str) -> float | None:
    labels = {"route": route, "code": code}
    return service.runtime.metrics.registry.get_sample_value("vigor_requests_total", labels)


def _wait_for(service: LiveService, series: str, value: float) -> None:
    wait_until(lambda: service.runtime.metrics.registry.get_sample_value(series) == value)
