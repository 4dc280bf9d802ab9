"""One line per evaluation on held-out questions, in a file that reports and studies read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vigor_trainer.monitoring.record_file import RecordFile, Resumption, records_in

EVALUATIONS_FILE = "evaluations.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """The numbers of one evaluation, as `eval.json` has them."""

    step: int  # optimizer steps taken
    mode: Literal["train", "eval"] = "eval"
    seconds: float
    metrics: Mapping[str, Any]


def evaluation_file(directory: Path, resumption: Resumption | None = None) -> RecordFile[EvaluationRecord]:
    """Return `evaluations.jsonl` in a run's directory, to append to. Raises as ``RecordFile``."""
    return RecordFile(directory / EVALUATIONS_FILE, EvaluationRecord, resumption)


def read_evaluations(directory: Path) -> list[EvaluationRecord]:
    """Return the evaluations of a run so far; none where it makes none.

    Raises:
        ValueError: a line is something else; names it.
    """
    return list(records_in(directory / EVALUATIONS_FILE, EvaluationRecord))
