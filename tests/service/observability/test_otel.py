"""What a collector gets of each request, and that the service does not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.collector import Collector, ReceivedSpan, collector
from tests.support.live_service import LiveService, live_service
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE
from vigor_service.observability.otel import CLOSE_SECONDS, Tracing

GROUP = {"prompt_ids": [1], "completions": [[2], [3, 4]]}
TRACE_ID, CALLER_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["receive", "prepare", "queue", "compute", "answer"]


@contextmanager
def traced_service(staging: Path, sink: Collector, **settings: Any) -> Iterator[LiveService]:  # noqa: ANN401 - fields of Settings
    """A service whose traces have come when the block has ended."""
    tracing = Tracing(f"{sink.url}/v1/traces", version="1.2.3")
    with live_service(staging, tracing=tracing, **settings) as service:
        yield service


def children(sink: Collector, parent: ReceivedSpan) -> list[ReceivedSpan]:
    return sorted((span for span in sink.spans if span.parent_id == parent.span_id), key=lambda span: span.began_ns)


def traceparent(*, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-0{int(sampled)}"}


@pytest.mark.parametrize("accept", ["application/json", LINES_MEDIA_TYPE])
def test_a_score_request_is_told_stage_by_stage_within_its_callers_trace(tmp_path: Path, accept: str) -> None:
    headers = {**traceparent(), "X-Request-Id": "r-1", "Accept": accept}
    with collector() as sink:
        with traced_service(tmp_path, sink, max_batch_tokens=3) as service:
            assert service.http.post("/v1/score", json={"groups": [GROUP]}, headers=headers).status_code == 200
        root = sink.named("POST /v1/score")
        assert (root.trace_id, root.parent_id, root.is_error) == (TRACE_ID, CALLER_ID, False)
        assert root.attributes == {
            "http.request.method": "POST",
            "http.route": "/v1/score",
            "http.response.status_code": 200,
            "vigor.request_id": "r-1",
            "vigor.weight_version": 0,
        }
        stages = children(sink, root)
        assert [stage.name for stage in stages] == STAGES
        _assert_follow_each_other(root, stages)
        compute = stages[STAGES.index("compute")]
        batches = children(sink, compute)
        assert [(batch.name, batch.attributes) for batch in batches] == [("batch", {"vigor.num_scores": 1})] * 2
        _assert_follow_each_other(compute, batches, slack_ns=10**8)
    assert {span.trace_id for span in sink.spans} == {TRACE_ID}
    assert sink.resources[0].items() >= {"service.name": "vigor-service", "service.version": "1.2.3"}.items()
    assert sink.paths == {"/v1/traces"}


def _assert_follow_each_other(whole: ReceivedSpan, parts: list[ReceivedSpan], *, slack_ns: int = 0) -> None:
    assert abs(parts[0].began_ns - whole.began_ns) <= 1000
    assert abs(parts[-1].ended_ns - whole.ended_ns) <= 1000 + slack_ns
    for one, following in pairwise(parts):
        assert one.began_ns <= one.ended_ns
        assert abs(following.began_ns - one.ended_ns) <= 1000  # made of floating-point seconds


def test_a_sample_waits_for_its_group_in_a_stage_of_its_own(tmp_path: Path) -> None:
    sample = {"group": "g", "group_size": 2, "prompt_ids": [1]}
    with collector() as sink:
        with traced_service(tmp_path, sink) as service, ThreadPoolExecutor(1) as pool:
            first = pool.submit(
                service.http.post,
                "/v1/score/sample",
                json={**sample, "index": 0, "completion": [2]},
                headers=traceparent(),
            )
            gathering = "vigor_gathering_samples"
            wait_until(lambda: service.runtime.metrics.registry.get_sample_value(gathering) == 1)
            service.http.post("/v1/score/sample", json={**sample, "index": 1, "completion": [3]})
            assert first.result().status_code == 200
        (root,) = [span for span in sink.spans if span.parent_id == CALLER_ID]
        names = [span.name for span in children(sink, root)]
    assert names == [*STAGES[:-1], "gather", "answer"]


def test_a_request_that_was_given_up_shows_where_its_time_went(tmp_path: Path) -> None:
    sample = {"group": "g", "group_size": 2, "prompt_ids": [1], "index": 0, "completion": [2]}
    with collector() as sink:
        with traced_service(tmp_path, sink, request_timeout_seconds=0.2, group_timeout_seconds=0.2) as service:
            assert service.http.post("/v1/score/sample", json=sample).json()["code"] == "group_incomplete"
            service.scorer.gate.clear()
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(service.score, groups=[GROUP])
                wait_until(service.scorer.is_scoring.is_set)
                other = {**GROUP, "prompt_ids": [9]}  # the same would wait for the batch that runs
                queued = service.http.post("/v1/score", json={"groups": [other]}, headers=traceparent())
                assert {queued.json()["code"], running.result().json()["code"]} == {"deadline_exceeded"}
        waited = sink.named("POST /v1/score/sample")
        assert [span.name for span in children(sink, waited)] == [*STAGES[:-1], "gather", "answer"]
        late = sorted((span for span in sink.spans if span.name == "POST /v1/score"), key=lambda span: span.began_ns)
        assert [[span.name for span in children(sink, root)] for root in late] == [STAGES[:-1], STAGES[:-2]]


def test_a_refusal_is_a_trace_that_ends_where_it_was_refused(tmp_path: Path) -> None:
    with collector() as sink:
        with traced_service(tmp_path, sink) as service:
            assert service.score(groups=[{**GROUP, "completions": []}]).status_code == 422
            service.scorer.fail_scoring = RuntimeError("no")
            assert service.http.post("/v1/score", json={"groups": [GROUP]}, headers=traceparent()).status_code == 500
        refused, failed = sorted(
            (span for span in sink.spans if span.name == "POST /v1/score"), key=lambda span: span.began_ns
        )
        assert [span.name for span in children(sink, refused)] == ["receive"]
        assert (refused.attributes["http.response.status_code"], refused.is_error) == (422, False)
        assert (failed.attributes["http.response.status_code"], failed.is_error) == (500, True)


def test_what_the_caller_does_not_sample_is_not_sent_and_probes_never_are(tmp_path: Path) -> None:
    with collector() as sink:
        with traced_service(tmp_path, sink) as service:
            for headers in (traceparent(sampled=False), {"traceparent": "nonsense"}):
                answer = service.http.post("/v1/score", json={"groups": [GROUP]}, headers=headers)
                assert answer.status_code == 200
        assert sink.named("POST /v1/score").parent_id == ""  # nonsense begins a trace of its own
        assert {span.name for span in sink.spans} == {"POST /v1/score", *STAGES, "batch"}


def test_nobody_waits_for_a_collector_that_does_not_answer(tmp_path: Path) -> None:
    with collector() as sink:
        sink.answers.clear()
        with traced_service(tmp_path, sink) as service:
            began = monotonic()
            for _ in range(100):  # more spans than are sent at once
                assert service.score(groups=[GROUP]).status_code == 200
            wait_until(lambda: bool(sink.spans))
            assert service.score(groups=[GROUP]).elapsed.total_seconds() < 1
            ending = monotonic()
        assert monotonic() - ending < CLOSE_SECONDS + 5
        assert ending - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("is_flag", [True, False])
def test_a_service_is_told_its_collector_by_flag_or_by_the_standard_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_flag: bool
) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    with collector() as sink:
        flag = ("--otlp-endpoint", f"{sink.url}/") if is_flag else ()
        if not is_flag:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
        with service_process(tmp_path, "--model", str(model), *flag, preloaded=False) as service:
            assert service.http.post("/v1/score", json={"groups": [GROUP]}).status_code == 200
            assert service.stop() == 0
        assert [span.name for span in children(sink, sink.named("POST /v1/score"))] == STAGES
    assert sink.paths == {"/v1/traces"}
