"""`vigor-trainer eval` and `audit` through real processes: each number is computed again from what they wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_models import save_tiny_checkpoint
from tests.trainer.evaluation import recomputed
from tests.trainer.ranks import said_by_two
from tests.trainer.running import RunningService, running_service, started, trainer_flags
from vigor_trainer.__main__ import main
from vigor_trainer.monitoring.evaluations import read_evaluations

RUN_SECONDS = 150.0
NUM_QUESTIONS, NUM_SAMPLES = 20, 4
SAMPLING = ["--max_completion_length", "16", "--batch_size", "16", "--backend", "transformers"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(model, tmp_path_factory.mktemp("service") / "service.log") as running:
        yield running


def run(command: str, *flags: str, directory: Path) -> tuple[int, str]:
    """Run a command of the trainer to its end; returns its exit code and what it said."""
    log = directory / f"{command}.log"
    with started("vigor_trainer", command, *flags, log=log) as process:
        return process.wait(RUN_SECONDS), log.read_text()


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def questions(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose answers are what a random model happens to say in some of its samples: some are correct."""
    directory = tmp_path_factory.mktemp("questions")
    path = write_rows(directory / "questions.jsonl", [{"prompt": f"Question {n}?"} for n in range(NUM_QUESTIONS)])
    flags = ["--model", str(model), "--dataset", str(path), "--num_samples", str(NUM_SAMPLES), *SAMPLING]
    code, said = run("eval", *flags, "--output", str(directory / "eval"), directory=directory)
    assert code == 0, said
    answers = {
        row["question"]: row["final_answer"]
        for row in rows_of(directory / "eval/completions.jsonl")
        if row["final_answer"] is not None
    }
    assert len(answers) > NUM_QUESTIONS / 2
    labelled = [{"prompt": f"Question {n}?", "answer": answers.get(n)} for n in range(NUM_QUESTIONS)]
    return write_rows(directory / "labelled.jsonl", labelled)


def test_every_number_of_an_evaluation_is_in_what_it_wrote(model: Path, questions: Path, tmp_path: Path) -> None:
    output = tmp_path / "eval"
    flags = ["--model", str(model), "--dataset", str(questions), "--num_samples", str(NUM_SAMPLES), *SAMPLING]
    code, said = run("eval", *flags, "--output", str(output), directory=tmp_path)
    assert code == 0, said
    found, rows = json.loads((output / "eval.json").read_text()), rows_of(output / "completions.jsonl")
    assert len(rows) == NUM_QUESTIONS * (1 + NUM_SAMPLES)
    expected = recomputed.evaluation(rows)
    assert recomputed.differences({name: found[name] for name in expected}, expected) == []
    assert found.keys() == expected.keys() | {"settings", "seconds"}
    assert 0 < found["sampled"]["accuracy"]["value"] < 1
    assert f"sampled accuracy                 {found['sampled']['accuracy']['value']:.3f} [" in said


def test_every_number_of_an_audit_is_in_what_it_wrote(
    model: Path, service: RunningService, questions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "audit"
    flags = ["--reward-url", service.url, "--model", str(model), "--dataset", str(questions), *SAMPLING]
    code, said = run(
        "audit", *flags, "--num_generations", str(NUM_SAMPLES), "--output", str(output), directory=tmp_path
    )
    assert code == 0, said
    found, rows = json.loads((output / "audit.json").read_text()), rows_of(output / "completions.jsonl")
    expected = recomputed.audit(rows)
    assert recomputed.differences({name: found[name] for name in expected}, expected) == []
    assert found.keys() == expected.keys() | {"verdict", "settings", "model", "weight_version", "weight_digest"}
    assert found["num_mixed"] > 5
    assert found["weight_digest"] == service.client.weights().weight_digest
    assert found["verdict"]["sentence"] in said
    assert found["verdict"]["sentence"] in (output / "audit.html").read_text()
    for group in recomputed.grouped(rows, "sampled"):
        for name, values in recomputed.rewards(group).items():
            assert [row["rewards"][name] for row in group] == pytest.approx(values), name
        assert sorted(row["rewards"]["random"] for row in group) == sorted(
            recomputed.rank_rewards([1.0, 2.0, 3.0, 4.0])
        )
        scores = service.client.score(
            [{"prompt_ids": group[0]["prompt_ids"], "completions": [row["completion_ids"] for row in group]}]
        )
        norms = [each.scaled_grad_norm for each in scores.groups[0].completions]
        assert [row["scaled_grad_norm"] for row in group] == pytest.approx(norms, rel=1e-4)


def test_ready_completions_are_audited_without_a_model(service: RunningService, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is it {n}?", "completion": f"It is {n + (k % 2)}" + "." * k, "answer": str(n)}
        for n in range(12)
        for k in range(4)
    ]
    path, output = write_rows(tmp_path / "ready.jsonl", rows), tmp_path / "audit"
    flags = ["--reward-url", service.url, "--completions", str(path), "--output", str(output)]
    code, said = run("audit", *flags, directory=tmp_path)
    assert code == 0, said
    found, written = json.loads((output / "audit.json").read_text()), rows_of(output / "completions.jsonl")
    expected = recomputed.audit(written)
    assert recomputed.differences({name: found[name] for name in expected}, expected) == []
    assert (found["num_questions"], found["num_mixed"], found["greedy_accuracy"]) == (12, 12, None)
    again = tmp_path / "again"
    files = ["--completions", str(output / "completions.jsonl"), "--output", str(again)]
    code, said = run("audit", "--reward-url", service.url, *files, directory=tmp_path)
    assert code == 0, said
    repeated = json.loads((again / "audit.json").read_text())
    assert recomputed.differences({name: repeated[name] for name in expected}, expected) == []


def test_a_service_with_other_weights_is_refused_until_it_is_sent_those_that_sample(
    model: Path, tmp_path: Path
) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", initializer_range=0.1)
    flags = ["--model", str(model), "--dataset", "addition", "--limit", "2", "--num_generations", "2", *SAMPLING]
    with running_service(other, tmp_path / "service.log") as service:
        flags += ["--reward-url", service.url, "--output", str(tmp_path / "audit")]
        before = service.client.weights()
        code, said = run("audit", *flags, directory=tmp_path)
        assert code == 2
        assert "has the weights xxh3-128:" in said
        assert f"start vigor-service with --model {model}, or give --publish true to send them" in said
        assert service.client.weights() == before
        code, said = run("audit", *flags, "--publish", "true", directory=tmp_path)
        assert code == 0, said
        after = service.client.weights()
        assert after.weight_version == before.weight_version + 1
        found = json.loads((tmp_path / "audit/audit.json").read_text())
        assert (found["weight_version"], found["weight_digest"]) == (after.weight_version, after.weight_digest)


def test_ids_without_text_are_decoded_by_the_tokenizer_of_the_model(
    model: Path, service: RunningService, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "Is it 7?", "prompt_ids": [256, 40], "completion_ids": list(text.encode()), "answer": "7"}
        for text in ("7", "8")
    ]
    path, output = write_rows(tmp_path / "ids.jsonl", rows), tmp_path / "audit"
    flags = ["--reward-url", service.url, "--completions", str(path), "--model", str(model), "--output", str(output)]
    code, said = run("audit", *flags, directory=tmp_path)
    assert code == 0, said
    assert len(rows_of(output / "completions.jsonl")) == 2
    assert "1 questions, 2 sampled completions" in said


def test_what_cannot_be_audited_is_refused_before_anything_is_sampled(
    model: Path, service: RunningService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_checkpoint(tmp_path / "other", hidden_size=64)
    unlabelled = write_rows(tmp_path / "unlabelled.jsonl", [{"prompt": "Is it 7?"}])
    refused: list[tuple[list[str], str]] = [
        (["--model", str(other), "--publish", "true"], f"--model {other} is another model than the service's"),
        (["--model", "not/a/model"], "--model not/a/model: there is no such file or directory"),
        (["--model", str(model), "--max_completion_length", "250"], "question 1 has 33 tokens, and the service's"),
        (["--model", str(model), "--dataset", str(unlabelled)], "unlabelled.jsonl: no question has an answer"),
    ]
    for flags, complaint in refused:
        given = ["--reward-url", service.url, "--output", str(tmp_path / "audit"), "--dataset", "addition", *flags]
        assert main(["audit", *given]) == 2, complaint
        assert complaint in capsys.readouterr().err


def test_a_run_is_evaluated_on_held_out_questions_while_it_trains(model: Path, questions: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run", tmp_path / "trainer.log"
    flags = ["--eval_every", "2", "--eval_dataset", str(questions), "--eval_limit", "6", "--eval_num_samples", "2"]
    with running_service(model, tmp_path / "service.log") as service:
        run = [*trainer_flags(service.url, model, output), "--max_steps", "3", "--save_strategy", "no", *flags]
        with started("vigor_trainer", *run, log=log) as trainer:
            assert trainer.wait(RUN_SECONDS) == 0, log.read_text()[-2000:]
    rows, records = rows_of(output / "evaluation_completions.jsonl"), read_evaluations(output)
    assert [record.step for record in records] == [0, 2, 3]
    for record in records:
        expected = recomputed.evaluation([row for row in rows if row["step"] == record.step])
        assert recomputed.differences(record.metrics, expected) == []
        assert record.metrics["num_questions"] == 6
    assert log.read_text().count("'eval_greedy_accuracy'") == 3


def test_two_processes_share_the_questions_and_one_of_them_writes(tmp_path: Path) -> None:
    assert said_by_two("tests.trainer.evaluation.two_processes", str(tmp_path)) == [
        "process 0: accuracy 1.0, whole True, 1 line",
        "process 1: accuracy 1.0, whole True, 1 line",
    ]
