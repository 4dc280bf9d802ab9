"""`vigor-trainer` from the outside, where a process of its own is needed to see it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.client.cli.command_line_fake import CommandLineFake, serving
from tests.client.fake_service import MODEL
from tests.support.preloaded_process import preloaded
from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.example_records import example_record
from vigor_trainer.__main__ import main
from vigor_trainer.config.arguments import VigorArguments
from vigor_trainer.monitoring.records import read_records, round_file

# TRL 1.16 still uses the names that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

WITHOUT_TRL = """
import sys
sys.modules["trl"] = None
from vigor_trainer.__main__ import main
code = main(sys.argv[1:])
assert code or "torch" not in sys.modules
sys.exit(code)
"""


def _without_trl(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TRL, *flags], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_missing_extra_is_named_without_a_stack_trace() -> None:
    finished = _without_trl("--dataset", "addition")
    assert finished.returncode == 2
    assert finished.stderr == (
        "vigor-trainer stopped: trl is not installed: pip install '.[trainer]' in a checkout of vigor-rl\n"
    )


def test_help_has_every_flag_under_its_subject_and_loads_neither_torch_nor_trl() -> None:
    finished = _without_trl("--reward_url", "http://127.0.0.1:1", "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    sections = finished.stdout.split("\n\n")
    titles = ["Connection to the service", "Model and recipe", "How the rows of a task are read", "Training prompts"]
    titles += ["Rewards", "Publication of weights", "Evaluation during training", "More"]
    assert [section.splitlines()[0] for section in sections[2:]] == titles
    flags = re.findall(r"^  --(\w+) \S", finished.stdout, re.MULTILINE)
    assert sorted(flags) == sorted(field.name for field in fields(VigorArguments))
    assert "  --ties average|ordinal\n" in finished.stdout
    assert "(default: None)" not in finished.stdout


def test_the_version_is_told_without_torch_or_trl() -> None:
    assert _without_trl("--version").stdout == f"vigor-trainer {version('vigor-rl')}\n"


def test_help_all_has_the_flags_of_trl_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help-all"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--reward_url", "--num_generations", "--use_peft"))


ANOTHER_TRL = """
import sys
import trl

class GRPOTrainer(trl.GRPOTrainer):
    def _generate(self, requests):
        return super()._generate(requests)

trl.GRPOTrainer = GRPOTrainer
from vigor_trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_trl_of_another_shape_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    program, output = tmp_path / "program.py", tmp_path / "output"
    program.write_text(ANOTHER_TRL)
    flags = ["--reward_url", "http://127.0.0.1:1", "--dataset", "addition", "--output_dir", str(output)]
    finished = subprocess.run(
        [sys.executable, program, *flags, "--use_cpu", "true"],
        env=preloaded(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    line = finished.stderr.splitlines()[-1]
    assert finished.returncode == 2
    assert line.startswith("vigor-trainer stopped: TRL 1.")
    assert ": GRPOTrainer._generate(prompts); 8 values from GRPOTrainer._generate" in line
    assert not output.exists()


def run(*argv: str) -> int:
    return main(["--dataset", "addition", "--use_cpu", "true", *argv])


def test_rewards_that_a_task_cannot_give_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, task = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "task.jsonl"
    flags = ["--reward_url", "http://127.0.0.1:1", "--model", str(model), "--output_dir", str(tmp_path / "run")]
    for row, reward, complaint in (
        ('{"prompt": "a"}', "verifier", "--reward verifier: {} has no answer and no tests"),
        (
            '{"prompt": "a", "tests": ["f()"]}',
            "majority",
            "--reward majority: {} has tests, and majority cannot compare programs",
        ),
    ):
        task.write_text(f"{row}\n")
        assert run(*flags, "--reward", reward, "--dataset", str(task)) == 2
        assert complaint.format(f"{task}:1") in capsys.readouterr().err


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
        (["--model", "."], "--model . has no config.json"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_runs(
    argv: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_tiny_checkpoint(tmp_path))
    assert run("--reward_url", "http://127.0.0.1:1", "--model", model, *argv) == 2
    assert complaint in capsys.readouterr().err


@pytest.fixture
def service() -> Iterator[str]:
    """A service whose context is 48 tokens: a question of `addition` has 33."""
    fake = CommandLineFake()
    fake.model = MODEL.model_copy(update={"max_sequence_tokens": 48})
    with serving(fake) as url:
        yield url


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--report_to", "tensorbord"], "the trainer cannot be built: tensorbord is not supported"),
        (["--attn_implementation", "nonsense"], "the trainer cannot be built: "),
        (["--optim", "adamw_bnb_8bit"], "the run cannot begin: You need to install `bitsandbytes`"),
        (["--max_completion_length", "32"], "100 of 100 prompts are empty or longer than 16 tokens"),
        (["--output_dir", __file__], f"--output_dir: {__file__}: File exists"),
        (["--resume_from_checkpoint", "true"], "there is no complete checkpoint in"),
        (["--resume_from_checkpoint", "nowhere"], "nowhere is not a checkpoint"),
    ],
)
def test_what_cannot_begin_is_one_line_and_leaves_the_last_runs_records(
    flags: list[str], complaint: str, service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run_directory = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "run"
    round_file(run_directory).append(example_record(0))
    capsys.readouterr()
    common = ["--model", str(model), "--output_dir", str(run_directory), "--max_completion_length", "1"]
    trl = [
        "--num_generations",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--report_to",
        "none",
        "--disable_tqdm",
        "true",
    ]
    assert run("--reward_url", service, *common, *trl, *flags) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vigor-trainer")]
    assert len(said) == 1
    assert complaint in said[0]
    assert [record.step for record in read_records(run_directory)] == [0]


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
