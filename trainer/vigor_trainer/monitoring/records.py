"""One line per scored round, in a file that the report and the demo read. Knows neither TRL nor the HTTP API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vigor_trainer.monitoring.record_file import RecordFile, Resumption, records_in

RECORDS_FILE = "rounds.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """The weights and the metrics of one generation round. None means that there was nothing to measure."""

    step: int  # optimizer steps taken when this round was generated and scored
    mode: Literal["train", "eval"]
    weight_version: int
    weight_digest: str
    num_groups: int
    num_completions: int
    num_unscored: int  # completions without a valid norm: empty, truncated, not finite
    mean_scaled_grad_norm: float | None
    mean_length: float  # tokens
    reward_length_correlation: float | None  # within groups
    accuracy: float | None  # of the completions whose prompt has an answer
    mean_logprob: float | None  # nats
    mean_entropy: float | None  # nats
    self_certainty: float | None  # nats
    sent_bytes: int  # of weights; 0 if the service had them already
    generate_seconds: float
    publish_seconds: float  # during generation
    wait_seconds: float  # waiting for the publication after generation had ended
    score_seconds: float
    # The fields of `health.RoundHealth`.
    duplicate_share: float | None = None
    tie_share: float | None = None
    repetition: float | None = None
    looping_share: float | None = None
    norm_spread: float | None = None
    top_quarter_accuracy: float | None = None
    # Parts of ``score_seconds``, as reported by the service; the rest is HTTP, JSON and the checks on both ends.
    score_queue_seconds: float | None = None
    score_compute_seconds: float | None = None


def round_file(directory: Path, resumption: Resumption | None = None) -> RecordFile[RoundRecord]:
    """Return `rounds.jsonl` in a run's directory, to append to. Raises as ``RecordFile``."""
    return RecordFile(directory / RECORDS_FILE, RoundRecord, resumption)


def read_records(directory: Path) -> list[RoundRecord]:
    """Return the records written so far; an incomplete last line is left out.

    Raises:
        ValueError: a line is not a record; names it.
    """
    return list(records_in(directory / RECORDS_FILE, RoundRecord))
