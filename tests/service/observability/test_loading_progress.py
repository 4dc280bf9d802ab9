"""What a service that is starting says of itself: in the log and in its readiness probe."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

import pytest

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import live_service
from tests.support.waiting import wait_until
from vigor_client.schemas.service import Health
from vigor_service.observability.loading_progress import LoadingPhase, LoadingProgress
from vigor_service.runtime import LoadedModel

HTTP_API = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()


class SlowScorer(FakeScorer):
    """Takes as long as it is told to find its batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.may_measure = threading.Event()

    def measure_batch_tokens(self) -> int:
        assert self.may_measure.wait(20)
        return super().measure_batch_tokens()


def test_the_phase_and_its_seconds_are_told() -> None:
    now = [10.0]
    progress = LoadingProgress(clock_seconds=lambda: now[0])
    now[0] = 14.0
    assert progress.describe() == "the model is being loaded: importing torch and transformers (4 s so far)"
    progress.begin(LoadingPhase.CHECKING_NORMS)
    now[0] = 16.5
    assert progress.phase == "checking_norms"
    assert progress.total_seconds == 6.5
    assert progress.describe().endswith("checking its fast norms against the reference (2 s so far)")


def test_readiness_names_the_phase_that_lasts_and_nothing_once_the_service_is_ready(tmp_path: Path) -> None:
    scorer = SlowScorer()
    with live_service(tmp_path, load_model=lambda: LoadedModel(scorer, None), wait_ready=False) as service:
        wait_until(lambda: _health(service.http.get("/readyz").content).phase == "measuring_batch_size")
        scorer.may_measure.set()
        wait_until(lambda: service.http.get("/readyz").status_code == 200)
        assert _health(service.http.get("/readyz").content) == Health(status="ok")
        service.runtime.drain_from_signal()
        wait_until(lambda: service.http.get("/readyz").status_code == 503)
        assert _health(service.http.get("/readyz").content) == Health(status="unavailable", reason="draining")


def test_the_log_has_a_line_for_each_phase_and_a_fixed_batch_size_is_not_measured(
    tmp_path: Path, text_log: pytest.LogCaptureFixture
) -> None:
    progress = LoadingProgress()

    def load() -> LoadedModel:
        progress.begin(LoadingPhase.READING_MODEL)
        return LoadedModel(FakeScorer(), None)

    text_log.set_level(logging.INFO, logger="vigor_service")
    with live_service(None, load_model=load, progress=progress, state_dir=tmp_path, max_batch_tokens=64):
        pass
    lines = [line for line in re.findall(r" vigor_service\S* (.*)", text_log.text) if "load" in line]
    assert [re.sub(r"after_seconds=\d+\.\d", "…", line) for line in lines[:-1]] == [
        f"loading phase={phase} …"
        for phase in LoadingPhase
        if phase not in (LoadingPhase.CHECKING_NORMS, LoadingPhase.MEASURING_BATCH_SIZE)
    ]
    assert re.search(r"^ready model=fake .* loading_seconds=\d+\.\d$", lines[-1])


def test_the_contract_lists_every_phase_in_order() -> None:
    table = HTTP_API.partition("| phase |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert [phase for phase, _ in rows] == list(LoadingPhase)
    assert all(text.startswith(LoadingPhase(phase).description) for phase, text in rows)


def _health(body: bytes) -> Health:
    return Health.model_validate_json(body)
