"""Lines of JSON: what they hold, that they are lines, and that a whole service writes nothing else."""

from __future__ import annotations

import json
import logging
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.live_service import live_service
from tests.support.pushing import push
from tests.support.service_process import service_process
from tests.support.tiny_models import save_tiny_checkpoint
from tests.support.waiting import wait_until
from vigor_client.schemas.scoring import LINES_MEDIA_TYPE
from vigor_service.observability.logs import JsonFormatter, TextFormatter, current_request_id

GROUP = {"prompt_ids": [1], "completions": [[2, 3]]}
TEXT_GROUP = {"prompt": "a", "completions": ["b"]}  # not answered without a thread


def record(message: str, *arguments: object, error: Exception | None = None, **fields: object) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    logger = logging.getLogger("vigor_service.x")
    return logger.makeRecord(logger.name, logging.WARNING, __file__, 1, message, arguments, exc_info, extra=fields)


def text(written: logging.LogRecord) -> str:
    """The line in text, without its time."""
    return TextFormatter().format(written).split(" WARNING ", 1)[1]


class KeepingHandler(logging.Handler):
    """Keeps what the lines hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, str]] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


def test_a_line_has_time_level_logger_and_message() -> None:
    written = record("ready model=%s", "a\nb é")
    line = JsonFormatter().format(written)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": datetime.fromtimestamp(written.created, UTC).isoformat(timespec="milliseconds"),
        "level": "warning",
        "logger": "vigor_service.x",
        "message": "ready model=a\nb é",
    }


def test_fields_are_members_of_a_line_with_their_types_and_take_no_others_place() -> None:
    line = json.loads(JsonFormatter().format(record("request", status=200, seconds=0.31, level="own", path=Path("a"))))
    assert list(line) == ["time", "level", "logger", "message", "status", "seconds", "path"]
    assert (line["message"], line["level"], line["status"]) == ("request", "warning", 200)
    assert (line["seconds"], line["path"]) == (0.31, "a")


def test_in_text_fields_follow_the_message_and_cannot_be_taken_for_others() -> None:
    assert text(record("ready", model="a/b", seconds=0.5)) == "vigor_service.x ready model=a/b seconds=0.5"
    assert text(record("x %d", 1, reason="two words")) == "vigor_service.x x 1 reason='two words'"
    hostile = text(record("x", detail="a\nb status=200", empty="", quoted="'", odd="\u202e\ud800\x1b[31m"))
    assert hostile == (
        "vigor_service.x x detail='a\\nb status=200' empty='' quoted=\"'\" odd='\\u202e\\ud800\\x1b[31m'"
    )
    assert hostile.isprintable()


def test_a_line_that_belongs_to_a_request_names_it() -> None:
    def write(written: logging.LogRecord) -> tuple[str, str]:
        current_request_id.set("r-1")
        return JsonFormatter().format(written), text(written)

    line, in_text = copy_context().run(write, record("x"))
    assert json.loads(line)["request_id"] == "r-1"
    assert in_text == "vigor_service.x x request_id=r-1"
    assert copy_context().run(write, record("x", request_id="r-0"))[1] == "vigor_service.x x request_id=r-0"
    assert "request_id" not in json.loads(JsonFormatter().format(record("x")))
    assert "request_id" not in text(record("x"))


def test_an_exception_stays_within_its_line() -> None:
    try:
        raise ArithmeticError("no")
    except ArithmeticError as error:
        failed = record("failed", error=error, status=500)
    line = JsonFormatter().format(failed)
    assert "\n" not in line
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ArithmeticError: no")
    assert text(failed).startswith("vigor_service.x failed status=500\nTraceback")


def test_each_request_has_its_own_id_in_its_context(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handler = KeepingHandler()
    logging.getLogger().addHandler(handler)
    try:
        with caplog.at_level(logging.INFO), live_service(tmp_path) as service:
            for request_id in ("r-1", "r-2"):
                service.http.delete("/v1/weights/updates/none", headers={"X-Request-Id": request_id})
            service.runtime.serving.scoring.preparation.close()  # whatever comes now is a bug
            service.http.post("/v1/score", json={"groups": [TEXT_GROUP]}, headers={"X-Request-Id": "r-3"})
    finally:
        logging.getLogger().removeHandler(handler)
    lines = handler.lines
    of_requests = [(line["request_id"], line["message"].split()[0]) for line in lines if "request_id" in line]
    assert of_requests[:2] == [("r-1", "request"), ("r-2", "request")]
    assert ("r-3", "bug") in of_requests
    assert [line["request_id"] for line in lines if "RuntimeError" in line.get("exception", "")] == ["r-3"]
    assert {"request_id" in line for line in lines if line["message"].startswith("ready")} == {False}


def test_the_line_of_an_answered_score_request_names_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = {"prompt_ids": [1], "completion": [2, 3], "group": "g", "group_size": 1, "index": 0}
    keyed = {"Idempotency-Key": "k"}
    with caplog.at_level(logging.INFO), live_service(tmp_path) as service:
        push(service.http, {name: tensor + 1 for name, tensor in service.scorer.parameters.items()}, version=12)
        caplog.clear()
        answers = [
            service.score(groups=[GROUP]),
            service.http.post("/v1/score", json={"groups": [GROUP]}, headers={"Accept": LINES_MEDIA_TYPE}),
            service.http.post("/v1/score", json={"groups": [GROUP]}, headers=keyed),
            service.http.post("/v1/score", json={"groups": [GROUP]}, headers=keyed),
            service.http.post("/v1/score/sample", json=ids),
            service.http.post("/v1/score/sample", json=ids),
            service.http.post("/slime/reward?group_size=1", json={"prompt": "a", "response": "b"}),
            service.http.post("/openrlhf/get_reward?group_size=1", json={"prompts": ["a"], "query": ["ab"]}),
        ]
        assert {answer.status_code for answer in answers} == {200}
        assert service.score(groups=[GROUP], weight_version=3).status_code == 409
        assert service.http.post("/v1/weights/updates", json={}).status_code == 422
        wait_until(lambda: len(_requests(caplog)) == len(answers) + 2)
    *answered, refused, other = _requests(caplog)
    assert all(TextFormatter().format(line).endswith(" weight_version=12") for line in answered)
    assert {json.loads(JsonFormatter().format(line))["weight_version"] for line in answered} == {12}
    for line in (refused, other):
        assert "weight_version" not in TextFormatter().format(line)
        assert "weight_version" not in json.loads(JsonFormatter().format(line))


def test_reads_and_probes_are_logged_at_debug_and_all_else_at_info(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), live_service(tmp_path) as service:
        read = ["/v1/weights", "/v1/weights/tensors", "/v1/model", "/metrics", "/healthz", "/readyz", "/"]
        for path in (*read, "/inspector/style.css"):
            assert {service.http.get(path).status_code, service.http.head(path).status_code} == {200}
        assert service.score(groups=[GROUP]).status_code == 200
        assert service.http.get("/v1/weights/updates/none").status_code == 404
        assert service.http.head("/nowhere").status_code == 404
        assert service.http.put("/v1/engines", json={}).status_code == 422
        assert service.http.delete("/v1/weights/updates/none").status_code == 404
        wait_until(lambda: len(_requests(caplog)) == 5)
    assert [getattr(line, "method", "") for line in _requests(caplog)] == ["POST", "GET", "HEAD", "PUT", "DELETE"]
    quiet = [line for line in caplog.records if line.name == "vigor_service.requests" and line.levelno == logging.DEBUG]
    assert len(quiet) >= 2 * len(read) + 2
    statuses = {(getattr(line, "route", ""), getattr(line, "status", 0)) for line in quiet}
    assert {route for route, status in statuses if status != 200} <= {"/readyz"}  # until the service was ready


def _requests(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [line for line in caplog.records if line.name == "vigor_service.requests" and line.levelno == logging.INFO]


def test_a_service_that_logs_json_writes_nothing_else(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    with service_process(tmp_path, "--model", str(model), "--device", "cpu", "--log-format", "json") as service:
        headers = {"X-Request-Id": "run7/step-3"}
        assert service.http.post("/v1/score", json={"groups": [GROUP]}, headers=headers).status_code == 200
        assert service.http.post("/v1/score", content=b"{", headers=headers).status_code == 415
        assert service.stop() == 0
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    scored = [line for line in lines if line.get("route") == "/v1/score" and line["status"] == 200]
    assert [(line["message"], line["method"]) for line in scored] == [("request", "POST")]
    assert [(line["request_id"], line["weight_version"]) for line in scored] == [("run7/step-3", 0)]
    assert 0 < scored[0]["seconds"] < 60
    assert {"limit", "max_connections"} < set(next(line for line in lines if line["message"] == "descriptors"))
    assert any(line["message"] == "ready" and line["device"] == "cpu" for line in lines)
    assert any(line["message"] == "access" and line["publish"] == "open" for line in lines)
