"""`vigor-trainer` from the outside, where a process of its own is needed to see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import save_tiny_checkpoint
from vigor_trainer.__main__ import main

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

WITHOUT_TRL = """
import sys
sys.modules["trl"] = None
from vigor_trainer.__main__ import main
sys.exit(main(["--help"]))
"""


def test_a_missing_extra_is_named_without_a_stack_trace() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRL], capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == "vigor-trainer needs trl: pip install '.[trainer]' in a checkout of vigor-rl\n"


def run(*argv: str) -> int:
    return main(["--dataset", "addition", "--use_cpu", "true", *argv])


def test_a_service_that_cannot_be_reached_stops_the_run_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny_checkpoint(tmp_path))
    capsys.readouterr()
    assert run("--reward_url", "http://127.0.0.1:1", "--ready_timeout_seconds", "0.5", "--model", model) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vigor-trainer stopped: the service is not ready after 0.5 s: ")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl: "),
        (["--reward_url", "ftp://127.0.0.1"], "--reward_url"),
        (["--api_key_file", "nowhere.key"], "--api_key_file: nowhere.key: No such file or directory"),
        (["--model", "."], "--model .: no tokenizer there"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_runs(
    argv: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny_checkpoint(tmp_path))
    assert run("--reward_url", "http://127.0.0.1:1", "--model", model, *argv) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("source", ["file", "environment"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--reward_url", "http://127.0.0.1:1", "--model", str(save_tiny_checkpoint(tmp_path))]
    if source == "file":
        (tmp_path / "key").write_text("one s3cret\nanother s3cret\n")
        flags += ["--api_key_file", str(tmp_path / "key")]
    else:
        monkeypatch.setenv("VIGOR_API_KEY", "one s3cret")
    assert run(*flags) == 2
    complaint = capsys.readouterr().err
    assert "--api_key_file (VIGOR_API_KEY)" in complaint
    assert "s3cret" not in complaint
