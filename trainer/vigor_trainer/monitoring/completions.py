"""One line per completion, in a file that reports and studies read. Knows no TRL and no wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vigor_trainer.monitoring.line_file import LineFile, Resumption, read_lines
from vigor_trainer.monitoring.records import record_of

COMPLETIONS_FILE = "completions.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRecord:
    """One sampled completion: what it says, what it was scored, what it was rewarded. None: there is no such number."""

    step: int  # optimizer steps taken when it was generated and scored
    mode: Literal["train", "eval"]
    group: int  # of the round
    index: int  # in its group
    prompt: str | list[dict[str, Any]]  # as the task has it
    completion: str
    completion_ids: list[int]
    finish_reason: Literal["stop", "length"]
    num_tokens: int  # T: tokens that count in the loss
    status: str
    grad_norm: float | None
    scaled_grad_norm: float | None
    rank: float | None  # of the scaled norms; None where none was computed
    rewards: Mapping[str, float]
    mean_logprob: float | None  # nats
    mean_entropy: float | None  # nats
    self_certainty: float | None  # nats
    p_norm: float | None
    sum_logprob: float | None  # nats
    final_answer: str | None
    is_correct: bool | None  # None: the task has no answer
    weight_version: int


class CompletionFile:
    """Appends records to `completions.jsonl` in a run's directory, those of a round together.

    Raises:
        ValueError: a resumed run's file holds something else than records; names the line.
    """

    def __init__(self, directory: Path, resumption: Resumption | None = None) -> None:
        self._file = LineFile(directory / COMPLETIONS_FILE, resumption)
        if resumption is not None:
            for _ in read_completions(directory):
                pass

    def append(self, records: Sequence[CompletionRecord]) -> None:
        """Add the lines of one round."""
        self._file.append(map(asdict, records))


def read_completions(directory: Path) -> Iterator[CompletionRecord]:
    """Yield what has been written so far; a last line that is still being written is left out.

    Raises:
        ValueError: a line is not a record; names it.
    """
    for place, line in read_lines(directory / COMPLETIONS_FILE):
        yield record_of(CompletionRecord, place, line)
