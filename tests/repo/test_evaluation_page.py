"""docs/evaluation.md: its tables are the flags, its numbers those that are written, and its commands run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.running import running_service, started
from vigor_trainer.audit.arguments import AuditArguments
from vigor_trainer.audit.metrics import AuditMetrics, NormMetrics, RewardMetrics
from vigor_trainer.evaluation.arguments import EvalArguments, SamplingArguments
from vigor_trainer.evaluation.metrics import DecodingMetrics

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
EXAMPLE, TRAINING = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8000"
RUN_SECONDS = 150.0


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line) for line in block.replace("\\\n", "").splitlines()]


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "required"
    shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "unset" if field.default is None else f"`{shown}`"


@pytest.mark.parametrize("kind", [EvalArguments, AuditArguments])
def test_the_tables_of_flags_are_the_arguments(kind: type[SamplingArguments]) -> None:
    helps = {field.name: field.metadata["help"].replace("<", r"\<") for field in fields(kind)}
    rows = [f"| `--{field.name}` | {_default(field)} | {helps[field.name]} |" for field in fields(kind)]
    assert "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows, ""]) in PAGE


@pytest.mark.parametrize("kind", [DecodingMetrics, AuditMetrics, NormMetrics, RewardMetrics])
def test_the_tables_of_numbers_name_what_is_written(kind: type[Any]) -> None:
    counts = {"num_questions", "num_completions", "clipped_share", "mean_length", "rewards", "norms"}
    for field in fields(kind):
        differences = field.name.startswith("best_of_minus_")  # told beside best_of_accuracy
        assert differences or field.name in counts or re.search(rf"`[\w.*]*\b{field.name}`", PAGE), field.name


@pytest.mark.slow
def test_the_commands_of_the_example_run_as_they_are_written(tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    (service, *lines) = commands(EXAMPLE)
    assert service == ["vigor-service", "--port", "8000", "&"]
    with running_service(model, tmp_path / "service.log") as running:
        for number, (program, command, *flags) in enumerate(lines):
            assert program == "vigor-trainer"
            given = [flag.replace(URL, running.url).replace("runs/", f"{tmp_path}/runs/") for flag in flags]
            named = [] if "--completions" in given else ["--model", str(model)]
            log = tmp_path / f"{number}.log"
            with started("vigor_trainer", command, *given, *named, log=log) as process:
                assert process.wait(RUN_SECONDS) == 0, log.read_text()
    assert json.loads((tmp_path / "runs/eval/eval.json").read_text())["num_questions"] == 20
    assert json.loads((tmp_path / "runs/audit/audit.json").read_text())["num_completions"] == 80
    again = json.loads((tmp_path / "runs/audit-of-eval/audit.json").read_text())
    assert again["num_completions"] == 80
    assert again["greedy_accuracy"] is not None


@pytest.mark.slow
def test_the_command_that_evaluates_while_it_trains_runs_as_it_is_written(tmp_path: Path) -> None:
    model, log = save_tiny_checkpoint(tmp_path / "model"), tmp_path / "trainer.log"
    ((program, *flags),) = commands(TRAINING)
    assert program == "vigor-trainer"
    smaller = [
        "--model",
        str(model),
        "--output_dir",
        str(tmp_path / "run"),
        "--max_completion_length",
        "8",
        "--use_cpu",
    ]
    with running_service(model, tmp_path / "service.log") as running:
        given = [flag.replace(URL, running.url) for flag in flags]
        with started("vigor_trainer", *given, *smaller, log=log) as process:
            assert process.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert steps == [0, 2, 4]
