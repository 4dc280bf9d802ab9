"""One line per scored round, in a file that the report and the demo read. Knows no TRL and no wire."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

RECORDS_FILE = "rounds.jsonl"


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

    The first record replaces the file of an earlier run, so that a run that cannot begin changes nothing.
    """

    def __init__(self, directory: Path, *, resumed_step: int | None = None, evaluates_first: bool = False) -> None:
        """Start a new file, or go on with an existing one from `resumed_step` on, so that each step is in it once.

        Rounds that will be repeated are left out: those of later steps, and those for training that begin at this one.
        An evaluation after this step stays, unless the run begins with another (`evaluates_first`).

        Raises:
            ValueError: the file holds something else than records; names the line.
        """
        self._path = directory / RECORDS_FILE
        self._has_begun = False
        self._before = [
            record
            for record in (read_records(directory) if resumed_step is not None else [])
            if record.step < cast("int", resumed_step)
            or (record.step == resumed_step and record.mode == "eval" and not evaluates_first)
        ]

    def append(self, record: RoundRecord) -> None:
        if not self._has_begun:
            self._begin()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def _begin(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = self._path.with_name(f"{RECORDS_FILE}.partial")
        rewritten.write_text("".join(map(_line, self._before)), encoding="utf-8")
        rewritten.replace(self._path)
        self._has_begun = True


def _line(record: RoundRecord) -> str:
    return json.dumps(asdict(record)) + "\n"


def read_records(directory: Path) -> list[RoundRecord]:
    """Read what has been written so far; a last line that is still being written is left out.

    Raises:
        ValueError: a line is not a record; names it.
    """
    path = directory / RECORDS_FILE
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    return [_record(f"{path}:{number}", line) for number, line in enumerate(lines, start=1)]


def _record(place: str, line: str) -> RoundRecord:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    found = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    if found.keys() != {field.name for field in fields(RoundRecord)}:
        raise ValueError(f"{place}: not a record of this version of vigor-trainer")
    return RoundRecord(**found)
