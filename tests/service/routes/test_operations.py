"""``/v1/engines``: what it says of the engines, and how many are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_scorer import FakeScorer
from tests.support.live_service import LiveService, live_service
from vigor_client.schemas.engines import EngineList
from vigor_service.observability.engine_metrics import EngineStatus
from vigor_service.runtime import LoadedModel
from vigor_service.scheduling.engine_pool import LocalEngine
from vigor_service.threads.worker import WorkerThread
from vigor_service.weights.version import Weights

GROUP = {"prompt_ids": [1], "completions": [[2], [3, 4]]}


class ScaledEngine(LocalEngine):
    """Computes alone, and says that the others are being started."""

    num_wanted = 1

    def scale(self, num_engines: int) -> None:
        self.num_wanted = num_engines

    def statuses(self) -> list[EngineStatus]:
        started = [
            EngineStatus(number, is_up=False, weight_version=None, busy_seconds=0.0, num_batches=0, num_restarts=0)
            for number in range(1, self.num_wanted)
        ]
        return [*super().statuses(), *started]


class ScaledModel(LoadedModel):
    def engines(self, compute: WorkerThread, weights: Weights) -> ScaledEngine:
        return ScaledEngine(self.scorer, compute, weights)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LiveService]:
    with live_service(tmp_path, load_model=lambda: ScaledModel(FakeScorer(), None)) as running:
        yield running


def test_the_one_engine_of_a_service_is_listed_with_what_it_did(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        assert service.score(groups=[GROUP]).status_code == 200
        [engine] = EngineList.model_validate(service.http.get("/v1/engines").json()).engines
        assert (engine.number, engine.is_up, engine.weight_version) == (0, True, 0)
        assert (engine.num_batches, engine.num_restarts) == (1, 0)
        assert engine.busy_seconds > 0
        assert service.http.put("/v1/engines", json={"num_engines": 1}).status_code == 200, "it has one already"


def test_another_number_of_engines_is_asked_of_the_pool(service: LiveService) -> None:
    answer = service.http.put("/v1/engines", json={"num_engines": 3})
    assert answer.status_code == 200, answer.text
    engines = EngineList.model_validate(answer.json())
    assert [engine.number for engine in engines.engines] == [0, 1, 2]
    assert engines.num_up == 1
    assert service.http.get("/v1/engines").json() == answer.json()


@pytest.mark.parametrize("body", [{}, {"num_engines": 0}, {"num_engines": 1025}, {"num_engines": 2, "and": "more"}])
def test_a_number_that_cannot_be_is_refused_and_the_engines_stay(service: LiveService, body: dict[str, object]) -> None:
    answer = service.http.put("/v1/engines", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "the number of engines is unchanged" in answer.json()["detail"]
    assert len(service.http.get("/v1/engines").json()["engines"]) == 1


def test_the_score_key_reads_and_cannot_scale(tmp_path: Path) -> None:
    with live_service(tmp_path, score_key="s", publish_key="p") as service:
        shown = {"Authorization": "Bearer s"}
        assert service.http.get("/v1/engines").status_code == 401
        assert service.http.get("/v1/engines", headers=shown).status_code == 200
        assert service.http.put("/v1/engines", json={"num_engines": 1}, headers=shown).status_code == 403
