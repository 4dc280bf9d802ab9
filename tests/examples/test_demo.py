"""`python -m examples.demo`, with a model of few steps."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from examples.processes import FailedProcessError, child
from tests.support.preloaded_process import preloaded
from tests.trainer.running import ENVIRONMENT, wait_for
from vigor_trainer.monitoring.evaluations import read_evaluations
from vigor_trainer.monitoring.records import read_records

ROOT = Path(__file__).parents[2]
SECRET = "the-key-of-the-environment"
LIMIT_SECONDS = 150.0
STOP_SECONDS = 45.0


def start(directory: Path, *, steps: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    directory.mkdir()
    sizes = ["--steps", str(steps), "--base-steps", "20", "--questions", "4"]
    command = [sys.executable, "-m", "examples.demo", *sizes, "--directory", str(directory)]
    with (directory / "demo.log").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)


def test_the_demo_compares_two_runs_and_ends_with_its_proof(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    environment = {**preloaded(ENVIRONMENT), "VIGOR_API_KEY": SECRET}
    with start(directory, steps=2, environment=environment) as demo:
        assert demo.wait(LIMIT_SECONDS) == 0, (directory / "demo.log").read_text()
    said = " ".join((directory / "demo.log").read_text().split())
    assert re.search(r"making the model: about .* measured on its first 2 steps", said)
    assert "sampled, 8 of each of 4 sums" in said
    assert "the 4 held-out questions would give, with 8 sampled completions of each" in said
    assert "proof: the service and the saved checkpoint hold the same weights, xxh3-128:" in said
    for reward in ("vigor", "random"):
        run = directory / reward
        assert [record.weight_version for record in read_records(run)] == [0, 1]
        assert [record.step for record in read_evaluations(run)] == [0, 1, 2]
    report = (directory / "report.html").read_text()
    title = re.search("<title>(.*)</title>", report)
    assert title is not None
    assert title[1] in said
    assert '["Weights of the saved checkpoint","xxh3-128:' in report
    command = f"python -m examples.demo --steps 2 --base-steps 20 --questions 4 --directory {directory}"
    assert f'["Command","{command}"]' in report
    assert '"name":"command","values":["vigor-trainer --config examples/sums/training.yaml --reward_url URL ' in report
    assert SECRET not in report
    assert str(ROOT) not in report


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    log = directory / "demo.log"
    with start(directory, steps=10_000, environment=ENVIRONMENT) as demo:  # whose children are its own
        wait_for(lambda: read_records(directory / "vigor"), process=demo, seconds=LIMIT_SECONDS, log=log)
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) >= 4
        demo.send_signal(signal.SIGINT)
        assert demo.wait(STOP_SECONDS) == 130
    assert [child for child in children if child.is_running()] == []
    assert "everything that was started has been stopped" in log.read_text()


def test_a_process_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)"]
    with child("the service", command, tmp_path / "log") as service:
        assert service.ends_within(LIMIT_SECONDS)
        with pytest.raises(FailedProcessError, match=r"(?s)the service ended with exit code 3; .*no such model"):
            service.check(may_end=True)
