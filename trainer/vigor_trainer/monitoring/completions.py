"""One line per completion, in a file that reports and studies read. Knows neither TRL nor the HTTP API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vigor_trainer.monitoring.record_file import RecordFile, Resumption, records_in

COMPLETIONS_FILE = "completions.jsonl"

SCORE_FIELDS = (
    "num_tokens",
    "status",
    "grad_norm",
    "scaled_grad_norm",
    "mean_logprob",
    "mean_entropy",
    "self_certainty",
    "p_norm",
    "sum_logprob",
)
"""Fields that a completion's record copies from its score, under the same names."""

SIGNALS: Mapping[str, tuple[str, int]] = {
    "self_certainty": ("self_certainty", 1),
    "entropy": ("mean_entropy", -1),
    "logprob": ("mean_logprob", 1),
    "p_norm": ("p_norm", 1),
    "trajectory_logprob": ("sum_logprob", 1),
}
"""Name of a reward -> the field of a score that it ranks, and the sign that makes larger better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRecord:
    """One sampled completion with its text, score and rewards. None means that the value does not exist."""

    step: int  # optimizer steps taken when it was generated and scored
    mode: Literal["train", "eval"]
    group: int  # index in the round
    index: int  # index in its group
    prompt: str | list[dict[str, Any]]  # as in the task
    completion: str
    completion_ids: list[int]
    finish_reason: Literal["stop", "length"]
    num_tokens: int  # T: tokens that count in the loss
    status: str
    grad_norm: float | None
    scaled_grad_norm: float | None
    rank: float | None  # by scaled norm; None if none was computed
    rewards: Mapping[str, float]
    mean_logprob: float | None  # nats
    mean_entropy: float | None  # nats
    self_certainty: float | None  # nats
    p_norm: float | None
    sum_logprob: float | None  # nats
    final_answer: str | None
    is_correct: bool | None  # None: the task has no answer
    weight_version: int


def completion_file(directory: Path, resumption: Resumption | None = None) -> RecordFile[CompletionRecord]:
    """Return `completions.jsonl` in a run's directory, to append to. Raises as ``RecordFile``."""
    return RecordFile(directory / COMPLETIONS_FILE, CompletionRecord, resumption)


def read_completions(directory: Path) -> Iterator[CompletionRecord]:
    """Yield the records written so far; an incomplete last line is left out.

    Raises:
        ValueError: a line is not a record; names it.
    """
    return records_in(directory / COMPLETIONS_FILE, CompletionRecord)
