"""One line per scored round, in a file that the report and the demo read. Knows no TRL and no wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vigor_trainer.monitoring.line_file import LineFile, Resumption, read_lines

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORDS_FILE = "rounds.jsonl"
Record = TypeVar("Record", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """The weights and the metrics of one generation round. None: there was nothing to measure."""

    step: int  # optimizer steps taken when this round was generated and scored
    mode: Literal["train", "eval"]
    weight_version: int
    weight_digest: str
    num_groups: int
    num_completions: int
    num_unscored: int  # completions without a norm of their own: empty, truncated, not finite
    mean_scaled_grad_norm: float | None
    mean_length: float  # tokens
    reward_length_correlation: float | None  # within groups
    accuracy: float | None  # of the completions whose prompt has an answer
    mean_logprob: float | None  # nats
    mean_entropy: float | None  # nats
    self_certainty: float | None  # nats
    sent_bytes: int  # of weights; 0 when the service had them already
    generate_seconds: float
    publish_seconds: float  # beside the generation
    wait_seconds: float  # for the publication, after generation had ended
    score_seconds: float


class RecordFile:
    """Appends records to `rounds.jsonl` in a run's directory, each visible as soon as it is written.

    Raises:
        ValueError: a resumed run's file holds something else than records; names the line.
    """

    def __init__(self, directory: Path, resumption: Resumption | None = None) -> None:
        self._file = LineFile(directory / RECORDS_FILE, resumption)
        if resumption is not None:
            read_records(directory)

    def append(self, record: RoundRecord) -> None:
        """Add a line."""
        self._file.append([asdict(record)])


def read_records(directory: Path) -> list[RoundRecord]:
    """Read what has been written so far; a last line that is still being written is left out.

    Raises:
        ValueError: a line is not a record; names it.
    """
    return [record_of(RoundRecord, place, line) for place, line in read_lines(directory / RECORDS_FILE)]


def record_of(kind: type[Record], place: str, line: Mapping[str, Any]) -> Record:
    """Return the fields of a line as a record of this kind, a dataclass.

    Raises:
        ValueError: it has other fields; names the place.
    """
    if set(line) != {field.name for field in fields(kind)}:
        raise ValueError(f"{place}: not a record of this version of vigor-trainer")
    return kind(**line)
