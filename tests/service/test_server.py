from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import httpx
import pytest

from tests.support.pushing import push_bytes
from tests.support.service_process import ServiceProcess, service_process
from tests.support.waiting import wait_until
from vigor_service.http.connection_limits import DEFAULT_LIMITS
from vigor_service.observability.metrics import Metrics
from vigor_service.server import QUIET_SECONDS, TooManyConnections

# A process as `vigor-service` starts it, around another way to load.
_PROGRAM = """
import threading
from pydantic_settings import CliApp
from vigor_service.observability.logs import configure_logging
from vigor_service.runtime import LoadedModel
from vigor_service.server import serve
from vigor_service.settings import Settings

def load_fake():
    from tests.support.fake_scorer import FakeScorer
    scorer = FakeScorer()
    scorer.gate.clear()  # no batch ever ends
    return LoadedModel(scorer, None)

def load_with_a_disk_that_hangs():
    from tests.support.fake_scorer import FakeScorer
    class Hanging(FakeScorer):
        calls = 0
        def tensors(self):
            self.calls += 1
            if self.calls > 1:  # whenever an update is verified
                threading.Event().wait()
            return super().tensors()
    return LoadedModel(Hanging(), None)

def load_forever():
    threading.Event().wait(60)

def load_wrongly():
    raise ZeroDivisionError("a bug")

configure_logging("info", "text")
serve(CliApp.run(Settings), {load})
"""
_DRAIN_SECONDS = 1.0


def _python(load: str) -> list[str]:
    return ["-c", _PROGRAM.replace("{load}", load)]


def _stop_and_time(service: ServiceProcess) -> float:
    started = monotonic()
    assert service.stop() == 0
    return monotonic() - started


def test_connections_that_are_too_many_are_all_counted_and_said_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, now = Metrics(), [0.0]
    too_many = TooManyConnections(metrics, clock=lambda: now[0])
    for now[0] in (0.0, 1.0, QUIET_SECONDS - 1, QUIET_SECONDS + 1):
        too_many.note()
    assert metrics.registry.get_sample_value("vigor_closed_connections_total") == 4
    assert caplog.text.count("too_many_connections") == 2


@pytest.mark.parametrize(
    ("descriptors", "connections", "waiting"), [(96, 32, 24), (1024, 960, 512), (65536, 65472, 512)]
)
def test_connections_leave_descriptors_for_files(descriptors: int, connections: int, waiting: int) -> None:
    limits = DEFAULT_LIMITS.within(descriptors)
    assert (limits.max_connections, limits.max_waiting) == (connections, waiting)


def test_a_batch_that_does_not_end_holds_the_process_no_longer_than_the_drain_time(tmp_path: Path) -> None:
    with (
        service_process(tmp_path, "--drain-seconds", str(_DRAIN_SECONDS), python=_python("load_fake")) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        body = {"groups": [{"prompt_ids": [1], "completions": [[2]]}]}
        pending = pool.submit(service.http.post, "/v1/score", json=body)
        probe = httpx.Client(base_url=service.http.base_url)
        with probe:
            wait_until(lambda: "vigor_queued_requests 1.0" in probe.get("/metrics").text)
        assert _DRAIN_SECONDS <= _stop_and_time(service) < _DRAIN_SECONDS + 10
        assert isinstance(pending.exception(), httpx.RemoteProtocolError) or pending.result().status_code >= 500
        assert [path.name for path in (tmp_path / "staging").iterdir()] == ["lock"]


def test_a_disk_that_does_not_answer_holds_the_process_no_longer_than_the_drain_time(tmp_path: Path) -> None:
    python = _python("load_with_a_disk_that_hangs")
    with (
        service_process(tmp_path, "--drain-seconds", str(_DRAIN_SECONDS), python=python) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        pending = pool.submit(push_bytes, service.http, b"bytes")
        with httpx.Client(base_url=service.http.base_url) as probe:
            wait_until(lambda: "vigor_weight_update_active 1.0" in probe.get("/metrics").text)
            wait_until(lambda: 'vigor_weight_update_seconds_count{phase="receive"} 1.0' in probe.get("/metrics").text)
            assert _stop_and_time(service) < _DRAIN_SECONDS + 10
        assert pending.exception() is not None or pending.result().status_code >= 500


def test_sigterm_while_the_model_loads_ends_at_once_with_zero(tmp_path: Path) -> None:
    with service_process(tmp_path, python=_python("load_forever"), wait_ready=False) as service:
        assert service.http.get("/readyz").json()["reason"] == "loading"
        assert _stop_and_time(service) < 10


def test_a_bug_while_the_model_loads_ends_with_one_and_its_trace_in_the_log(tmp_path: Path) -> None:
    with service_process(tmp_path, python=_python("load_wrongly"), wait_ready=False) as service:
        assert service.process.wait(30) == 1
        assert "ZeroDivisionError: a bug" in service.log.read_text()
