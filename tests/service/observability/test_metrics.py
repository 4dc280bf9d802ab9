"""What the service's metrics say of what happens to it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.live_service import LiveService, live_service
from tests.support.pushing import announce, open_update, push
from tests.support.waiting import wait_until
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.observability.metrics import Metrics

GROUP = {"prompt_ids": [1, 2], "completions": [[3, 4], [5], [5], []]}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path) as running:
        yield running


def value(service: LiveService, name: str, **labels: str) -> float:
    """The value of a series, which has to be there."""
    found = service.runtime.metrics.registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


@pytest.mark.parametrize("accept", ["application/json", LINES_MEDIA_TYPE])
def test_a_ranked_group_is_counted_by_what_became_of_its_completions(service: LiveService, accept: str) -> None:
    answer = service.http.post("/v1/score", json={"groups": [GROUP]}, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert value(service, "vigor_completions_total", status="ok") == 3
    assert value(service, "vigor_completions_total", status="empty") == 1
    assert value(service, "vigor_completions_total", status="nonfinite") == 0
    assert value(service, "vigor_duplicate_completions_total") == 1
    assert value(service, "vigor_tied_completions_total") == 2
    assert value(service, "vigor_scaled_grad_norm_count") == 3
    assert value(service, "vigor_norm_spread_ratio_count") == 1
    assert value(service, "vigor_reward_length_correlation_count") == 1


def test_the_sum_of_correlations_never_falls() -> None:
    metrics = Metrics()
    assert metrics.registry.get_sample_value("vigor_reward_length_correlation_sum") is None
    assert metrics.registry.get_sample_value("vigor_reward_length_correlation_plus_one_total") == 0


def test_refusals_are_counted_by_code(service: LiveService) -> None:
    service.score(groups=[])
    service.score(groups=[GROUP], weight_version=7)
    service.http.get("/nowhere")
    for code in ("invalid_request", "weight_version_mismatch", "not_found"):
        assert value(service, "vigor_rejections_total", code=code) == 1
    assert value(service, "vigor_rejections_total", code="queue_full") == 0


def test_a_request_waits_until_a_batch_of_it_begins_and_runs_until_its_answer(tmp_path: Path) -> None:
    with live_service(tmp_path, max_batch_tokens=4) as service, ThreadPoolExecutor(2) as pool:
        service.scorer.gate.clear()
        first = pool.submit(service.score, groups=[{"prompt_ids": [1], "completions": [[2, 3]]}])
        wait_until(lambda: value(service, "vigor_running_requests") == 1)
        second = pool.submit(service.score, groups=[{"prompt_ids": [1], "completions": [[4, 5]]}])
        wait_until(lambda: value(service, "vigor_waiting_requests") == 1)
        assert value(service, "vigor_queued_requests") == 2
        service.scorer.gate.set()
        assert [first.result(20).status_code, second.result(20).status_code] == [200, 200]
        assert value(service, "vigor_running_requests") == value(service, "vigor_waiting_requests") == 0


def test_requests_that_leave_are_neither_waiting_nor_running(service: LiveService) -> None:
    service.scorer.gate.clear()
    with httpx.Client(base_url=service.http.base_url, timeout=0.3) as impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/v1/score", json={"groups": [GROUP]})
    wait_until(lambda: value(service, "vigor_disconnects_total") == 1)
    wait_until(lambda: value(service, "vigor_running_requests") == 0)
    assert value(service, "vigor_waiting_requests") == 0


def test_a_client_that_leaves_a_stream_is_counted(tmp_path: Path) -> None:
    with live_service(tmp_path, beat_seconds=0.05) as service:
        service.scorer.gate.clear()
        lines = {"json": {"groups": [GROUP]}, "headers": {"Accept": LINES_MEDIA_TYPE}}
        with service.http.stream("POST", "/v1/score", **lines) as response:
            assert response.status_code == 200
        wait_until(lambda: value(service, "vigor_disconnects_total") == 1)


def test_the_limits_of_the_queue_are_shown(tmp_path: Path) -> None:
    with live_service(tmp_path, max_queued_tokens=123, max_queued_requests=45) as service:
        assert value(service, "vigor_max_queued_tokens") == 123
        assert value(service, "vigor_max_queued_requests") == 45


def test_one_state_of_the_weights_is_one_and_a_failed_swap_makes_it_poisoned(service: LiveService) -> None:
    def states() -> list[str]:
        names = ("ready", "applying", "poisoned")
        return [name for name in names if value(service, "vigor_weight_state", state=name) == 1]

    assert states() == ["ready"]
    service.scorer.fail_loading = RuntimeError("broken")
    push(service.http, service.scorer.tensors())
    assert states() == ["poisoned"]


def test_an_update_is_active_from_opening_to_its_end_and_its_bytes_are_counted(service: LiveService) -> None:
    data = b"12345678"
    opened = open_update(service.http, announce(data))
    assert value(service, "vigor_weight_update_active") == 1
    path = f"/v1/weights/updates/{opened.json()['update_id']}"
    service.http.put(f"{path}/files/model.safetensors", content=data)
    assert value(service, "vigor_weight_update_bytes_total", encoding="full") == len(data)
    assert value(service, "vigor_weight_update_bytes_total", encoding="delta") == 0
    service.http.delete(path)
    assert value(service, "vigor_weight_update_active") == 0


def test_a_publication_is_dated_and_those_who_waited_for_it_are_measured(service: LiveService) -> None:
    loaded_at = value(service, "vigor_weight_published_timestamp_seconds")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.score, groups=[GROUP], weight_version=1, wait_seconds=30)
        wait_until(lambda: value(service, "vigor_queued_requests") == 1)
        push(service.http, service.scorer.tensors())
        assert waiting.result(20).status_code == 200
    assert value(service, "vigor_weight_published_timestamp_seconds") > loaded_at
    assert value(service, "vigor_weight_wait_seconds_count") == 1
    assert value(service, "vigor_weight_wait_seconds_sum") > 0
    service.score(groups=[GROUP])
    assert value(service, "vigor_weight_wait_seconds_count") == 1


def test_the_build_says_what_is_served(service: LiveService) -> None:
    (build,) = [family for family in service.runtime.metrics.registry.collect() if family.name == "vigor_build"]
    labels = build.samples[0].labels
    assert {name: labels[name] for name in ("model", "dtype", "device")} == {
        "model": "fake",
        "dtype": "float32",
        "device": "cpu",
    }
    assert labels["version"]


def test_the_engine_is_busy_while_it_computes_and_memory_is_read(service: LiveService) -> None:
    before = value(service, "vigor_engine_busy_seconds_total", engine="0")
    service.scorer.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(service.score, groups=[GROUP])
        assert service.scorer.is_scoring.wait(20)
        wait_until(lambda: value(service, "vigor_engine_busy_seconds_total", engine="0") > before + 0.05)
        service.scorer.gate.set()
        assert scoring.result(20).status_code == 200
    assert (
        0 < value(service, "vigor_memory_bytes", kind="allocated") < value(service, "vigor_memory_bytes", kind="total")
    )


def test_an_engine_is_up_with_the_version_that_it_holds_and_counts_its_batches(service: LiveService) -> None:
    assert value(service, "vigor_engine_up", engine="0") == 1
    assert value(service, "vigor_engine_weight_version", engine="0") == 0
    before = value(service, "vigor_engine_batches_total", engine="0")
    service.score(groups=[GROUP])
    assert value(service, "vigor_engine_batches_total", engine="0") == before + 1
    push(service.http, service.scorer.tensors(), version=7)
    assert value(service, "vigor_engine_weight_version", engine="0") == 7


def test_an_engine_that_is_not_up_has_no_version_and_one_that_is_gone_has_no_series() -> None:
    metrics = Metrics()
    down = EngineStatus(number=1, is_up=False, weight_version=None, busy_seconds=2.5, num_batches=3, num_restarts=4)
    metrics.watch_engines(lambda: [down])
    value = partial(metrics.registry.get_sample_value, labels={"engine": "1"})
    assert value("vigor_engine_up") == 0
    assert value("vigor_engine_weight_version") is None
    assert value("vigor_engine_busy_seconds_total") == 2.5
    assert value("vigor_engine_batches_total") == 3
    assert value("vigor_engine_restarts_total") == 4
    metrics.watch_engines(list)
    assert value("vigor_engine_up") is None
