"""``POST /v1/score`` with ``Accept: application/x-ndjson``, over a real socket."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_scorer import WAIT_SECONDS, FakeScorer
from tests.support.live_service import LiveService, live_service
from tests.support.tiny_models import tiny_tokenizer
from tests.support.waiting import wait_until
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE
from vigor_service.engine.interface import BatchResult
from vigor_service.engine.sequences import NORM_AND_SIGNALS, ScoreParts, TokenSequence
from vigor_service.runtime import LoadedModel

ACCEPT = {"Accept": f"{LINES_MEDIA_TYPE}, application/json"}
ROUTE = {"route": "/v1/score", "code": "200"}
FIRST, SECOND = {"id": "a", "prompt_ids": [1], "completions": [[2, 3, 4]]}, {"prompt_ids": [1], "completions": [[7]]}
EMPTY = {"id": "nothing", "prompt_ids": [9], "completions": [[]]}


class SteppingScorer(FakeScorer):
    """Scores a batch for each permit."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)

    def score(self, sequences: Sequence[TokenSequence], parts: ScoreParts = NORM_AND_SIGNALS) -> BatchResult:
        assert self.permits.acquire(timeout=WAIT_SECONDS)
        return super().score(sequences, parts)


@contextmanager
def stepping_service(staging: Path, **options: Any) -> Iterator[tuple[LiveService, SteppingScorer]]:  # noqa: ANN401 - any option
    """A service with one sequence in each batch."""
    scorer = SteppingScorer()
    model = LoadedModel(scorer, tiny_tokenizer())  # pyright: ignore[reportArgumentType] - see __main__
    with live_service(staging, load_model=lambda: model, max_batch_tokens=4, **options) as service:
        yield service, scorer
        scorer.permits.release(100)


@contextmanager
def streamed(service: LiveService, **body: Any) -> Iterator[tuple[httpx.Response, Iterator[str]]]:  # noqa: ANN401 - any request
    with service.http.stream("POST", "/v1/score", json=body, headers=ACCEPT) as answer:
        yield answer, answer.iter_lines()


def queued_requests(service: LiveService) -> float | None:
    return service.runtime.metrics.registry.get_sample_value("vigor_queued_requests")


def num_answered(service: LiveService) -> float | None:
    return service.runtime.metrics.registry.get_sample_value("vigor_requests_total", ROUTE)


def test_the_lines_say_what_the_whole_answer_says(tmp_path: Path) -> None:
    groups = [FIRST, EMPTY, {"prompt_ids": [1], "completions": [[7], [2, 3, 4], [7]]}]
    with live_service(tmp_path) as service, streamed(service, groups=groups) as (answer, lines):
        whole = service.score(groups=groups).json()
        *group_lines, last = [json.loads(line) for line in lines]
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == LINES_MEDIA_TYPE
        assert answer.headers["X-Accel-Buffering"] == "no"
    in_order = sorted(group_lines, key=lambda line: line["index"])
    assert [line.pop("index") for line in in_order] == [0, 1, 2]
    assert in_order == whole.pop("groups")
    assert last.keys() == whole.keys()
    assert [last[name] for name in ("usage", "weight_digest")] == [whole[name] for name in ("usage", "weight_digest")]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (f"text/html, {LINES_MEDIA_TYPE.upper()};q=0.5", LINES_MEDIA_TYPE),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
    ],
)
def test_only_a_caller_that_names_lines_gets_them(tmp_path: Path, accept: str, media_type: str) -> None:
    with live_service(tmp_path) as service:
        answer = service.http.post("/v1/score", json={"groups": [FIRST]}, headers={"Accept": accept})
        assert answer.headers["Content-Type"] == media_type


def test_a_group_goes_out_while_others_are_computed(tmp_path: Path) -> None:
    with stepping_service(tmp_path) as (service, scorer):
        scorer.permits.release()
        with streamed(service, groups=[SECOND, FIRST]) as (_, lines):
            assert json.loads(next(lines))["index"] == 1  # the longest leads
            assert num_answered(service) == 0
            scorer.permits.release()
            assert [json.loads(line).get("index") for line in lines] == [0, None]
        wait_until(lambda: num_answered(service) == 1)


def test_a_group_that_needs_no_computation_does_not_wait_for_any(tmp_path: Path) -> None:
    with stepping_service(tmp_path) as (service, scorer), streamed(service, groups=[FIRST, EMPTY]) as (_, lines):
        assert json.loads(next(lines))["id"] == "nothing"
        assert scorer.batches == []


def test_an_empty_line_goes_out_while_nothing_is_ready(tmp_path: Path) -> None:
    with (
        stepping_service(tmp_path, beat_seconds=0.05) as (service, scorer),
        streamed(service, groups=[FIRST]) as (answer, lines),
    ):
        assert [next(lines), next(lines), answer.status_code] == ["", "", 200]
        scorer.permits.release()
        assert [json.loads(line).get("index") for line in lines if line] == [0, None]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"groups": []}, 422, "invalid_request"),
        ({"groups": [{"prompt_ids": [999], "completions": [[2]]}]}, 422, "invalid_request"),
        ({"groups": [FIRST, EMPTY], "weight_version": 7}, 409, "weight_version_mismatch"),
    ],
)
def test_an_error_that_comes_first_has_its_own_status(
    tmp_path: Path, body: dict[str, Any], status: int, code: str
) -> None:
    with live_service(tmp_path) as service, streamed(service, **body) as (answer, _):
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert json.loads(answer.read())["code"] == code


def test_an_error_that_comes_later_is_the_last_line(tmp_path: Path) -> None:
    with stepping_service(tmp_path) as (service, scorer):
        scorer.permits.release()
        with streamed(service, groups=[SECOND, FIRST]) as (answer, lines):
            assert json.loads(next(lines))["index"] == 1
            scorer.fail_scoring = RuntimeError("secret detail")
            scorer.permits.release()
            (last,) = lines
        error = json.loads(last)["error"]
        assert (answer.status_code, error["status"], error["code"]) == (200, 500, "internal")
        assert "secret" not in last


def test_a_refusal_after_the_first_byte_says_when_to_come_back(tmp_path: Path) -> None:
    with (
        stepping_service(tmp_path, beat_seconds=0.05) as (service, _),
        streamed(service, groups=[FIRST], weight_version=7, wait_seconds=0.3) as (answer, lines),
    ):
        *beats, last = lines
        assert answer.status_code == 200
        assert set(beats) == {""}
        assert (json.loads(last)["error"]["code"], json.loads(last)["error"]["want"]) == ("weight_version_mismatch", 7)


def test_the_time_limit_holds_for_a_streamed_answer(tmp_path: Path) -> None:
    with (
        stepping_service(tmp_path, request_timeout_seconds=0.3) as (service, _),
        streamed(service, groups=[FIRST, EMPTY]) as (_, lines),
    ):
        assert json.loads(next(lines))["id"] == "nothing"
        assert [json.loads(line)["error"]["code"] for line in lines] == ["deadline_exceeded"]
        assert queued_requests(service) == 0


def test_a_client_that_leaves_before_the_first_line_takes_its_work_along(tmp_path: Path) -> None:
    with stepping_service(tmp_path) as (service, _):
        impatient = httpx.Client(base_url=service.http.base_url, timeout=0.3)
        with impatient, pytest.raises(httpx.ReadTimeout):
            impatient.post("/v1/score", json={"groups": [FIRST]}, headers=ACCEPT)
        wait_until(lambda: queued_requests(service) == 0)
        left = {"route": "/v1/score", "code": "499"}
        wait_until(lambda: service.runtime.metrics.registry.get_sample_value("vigor_requests_total", left) == 1)


def test_a_client_that_leaves_takes_the_rest_of_its_work_along(tmp_path: Path) -> None:
    with stepping_service(tmp_path) as (service, scorer):
        scorer.permits.release()
        groups = [{"prompt_ids": [1], "completions": [[number, 3, 4]]} for number in range(5)]
        with streamed(service, groups=groups) as (_, lines):
            assert "index" in json.loads(next(lines))
        wait_until(lambda: queued_requests(service) == 0)
        scorer.permits.release(100)
        assert service.score(groups=[SECOND]).status_code == 200
        assert len(scorer.batches) <= 3  # the one it saw, the one that ran when it left, the one of the other request


def test_the_description_names_both_forms_of_the_answer(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        document = service.http.get("/openapi.json").json()
    content = document["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]
    assert content.keys() == {"application/json", LINES_MEDIA_TYPE}
    shapes = [shape["$ref"].rpartition("/")[2] for shape in content[LINES_MEDIA_TYPE]["schema"]["oneOf"]]
    assert shapes == ["GroupLine", "LastLine", "ErrorLine"]
    assert set(shapes) <= document["components"]["schemas"].keys()
