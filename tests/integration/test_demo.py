"""`examples/demo.py`, with a tiny model in place of the embedded one."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.support.preloaded_process import preloaded
from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import ENVIRONMENT, wait_for
from vigor_trainer.monitoring.records import read_records

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
LIMIT_SECONDS = 150.0
STOP_SECONDS = 45.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny-model")


def start(model: Path, directory: Path, *, steps: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    directory.mkdir()
    flags = ["--model", str(model), "--steps", str(steps), "--directory", str(directory)]
    with (directory / "demo.log").open("wb") as output:
        command = [sys.executable, str(DEMO), *flags]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def test_the_demo_ends_with_its_proof(model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    with start(model, directory, steps=2, environment=preloaded(ENVIRONMENT)) as demo:
        assert demo.wait(LIMIT_SECONDS) == 0, (directory / "demo.log").read_text()
    said = " ".join((directory / "demo.log").read_text().split())
    assert "proof: the service and the saved checkpoint hold the same weights, xxh3-128:" in said
    assert "each step, scored by the weights of that step" in said
    assert [record.weight_version for record in read_records(directory / "checkpoint")] == [0, 1]
    report = (directory / "report.html").read_text()
    assert "<h1>tiny-model learns one-digit addition</h1>" in report
    assert '["The saved checkpoint\'s weights","xxh3-128:' in report


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_running(model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    log = directory / "demo.log"
    with start(model, directory, steps=10_000, environment=ENVIRONMENT) as demo:  # whose children are its own
        wait_for(lambda: read_records(directory / "checkpoint"), process=demo, seconds=LIMIT_SECONDS, log=log)
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) >= 2
        demo.send_signal(signal.SIGINT)
        assert demo.wait(STOP_SECONDS) == 130
    assert [child for child in children if child.is_running()] == []
    assert "everything that was started has been stopped" in log.read_text()
