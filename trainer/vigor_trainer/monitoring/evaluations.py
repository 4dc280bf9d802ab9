"""Evaluations on held-out questions: a line per evaluation and a line per completion, for reports and studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vigor_trainer.monitoring.record_file import RecordFile, Resumption, records_in

EVALUATIONS_FILE = "evaluations.jsonl"
EVALUATION_COMPLETIONS_FILE = "evaluation_completions.jsonl"

Decoding = Literal["greedy", "sampled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """The metrics of one evaluation, as in `eval.json`."""

    step: int  # optimizer steps taken
    mode: Literal["train", "eval"] = "eval"
    seconds: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCompletion:
    """One completion of a question, greedy or sampled. None means that the value does not exist."""

    step: int  # optimizer steps taken; 0 outside of training
    mode: Literal["train", "eval"] = "eval"
    question: int
    decoding: Decoding
    index: int  # index among the completions of this question and decoding
    prompt: str | list[dict[str, Any]]  # as in the task
    prompt_ids: list[int] | None
    answer: str | None
    completion: str
    completion_ids: list[int] | None
    finish_reason: Literal["stop", "length"]
    num_tokens: int
    mean_entropy: float | None  # nats, at temperature 1
    final_answer: str | None
    is_boxed: bool
    is_correct: bool | None
    tests: str | None = None  # of a code task, as JSON


def evaluation_file(directory: Path, resumption: Resumption | None = None) -> RecordFile[EvaluationRecord]:
    """Return `evaluations.jsonl` in a run's directory, to append to. Raises as ``RecordFile``."""
    return RecordFile(directory / EVALUATIONS_FILE, EvaluationRecord, resumption)


def read_evaluations(directory: Path) -> list[EvaluationRecord]:
    """Return the evaluations of a run so far; empty if the run makes none.

    Raises:
        ValueError: a line is not a record; names it.
    """
    return list(records_in(directory / EVALUATIONS_FILE, EvaluationRecord))


def read_evaluated(path: Path) -> Iterator[EvaluatedCompletion]:
    """Yield the completions in a file. Raises ValueError if a line is not a completion; names it."""
    return records_in(path, EvaluatedCompletion)
