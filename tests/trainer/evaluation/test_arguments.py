"""The flags of `eval` and `audit`: each error is one line, and ends with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_models import save_tiny_checkpoint
from vigor_trainer.__main__ import main

URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["eval"], "vigor-trainer eval: the following arguments are required: --dataset"),
        (["eval", "--dataset", "addition", "--limit", "0"], "--limit is 0: give 1 or more"),
        (["eval", "--dataset", "addition", "--num_samples", "-1"], "--num_samples is -1: give 0 or more"),
        (["eval", "--dataset", "addition", "--temperature", "0"], "--temperature is 0: give more than 0"),
        (["eval", "--dataset", "addition", "--batch-size", "0"], "--batch_size is 0: give 1 or more"),
        (
            ["eval", "--dataset", "addition", "--num_sample", "3"],
            "unknown option --num_sample 3; did you mean --num_samples?",
        ),
        (["eval", "--dataset", "addition", "--backend", "ollama"], "argument --backend: invalid choice: 'ollama'"),
        (["audit", "--dataset", "addition"], "the following arguments are required: --reward_url"),
        (["audit", "--reward-url", URL], "give one of --dataset and --completions"),
        (["audit", "--reward-url", URL, "--dataset", "addition", "--completions", "b"], "give one of --dataset and"),
        (
            ["audit", "--reward-url", URL, "--dataset", "addition", "--num_generations", "1"],
            "--num_generations is 1: give 2",
        ),
        (["audit", "--reward-url", URL, "--dataset", "addition", "--ready_timeout_seconds", "0"], "give more than 0"),
    ],
)
def test_a_wrong_flag_is_one_line(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vigor-trainer {argv[0]}: ")
    assert complaint in line


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (["eval", "--dataset", "nowhere.jsonl"], 2, "nowhere.jsonl: "),
        (["eval", "--dataset", "addition", "--model", "."], 2, "--model . has no config.json"),
        (["eval", "--dataset", "addition", "--output", __file__], 2, f"--output: {__file__}: File exists"),
        (["eval", "--dataset", "addition", "--backend", "vllm"], 2, "--backend vllm needs a package"),
        (["audit", "--reward-url", "ftp://x", "--dataset", "addition"], 2, "--reward_url"),
        (
            ["audit", "--reward-url", URL, "--dataset", "addition", "--ready_timeout_seconds", "0.1"],
            1,
            "not ready after",
        ),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_sampled(
    flags: list[str], code: int, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [] if "--model" in flags else ["--model", str(save_tiny_checkpoint(tmp_path / "model"))]
    output = [] if "--output" in flags else ["--output", str(tmp_path / "output")]
    capsys.readouterr()
    assert main([*flags, *named, *output]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vigor-trainer")]
    assert line.startswith("vigor-trainer stopped: ")
    assert complaint in line
