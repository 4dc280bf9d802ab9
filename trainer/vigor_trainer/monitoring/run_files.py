"""The two files of a run: a line per round, and a line per completion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vigor_trainer.monitoring.completions import CompletionFile, CompletionRecord
from vigor_trainer.monitoring.line_file import Resumption
from vigor_trainer.monitoring.records import RecordFile, RoundRecord


class RunFiles:
    """Appends to `rounds.jsonl` and `completions.jsonl` in a run's directory.

    Raises:
        ValueError: a resumed run's files hold something else than records; names the line.
    """

    def __init__(self, directory: Path, resumption: Resumption | None = None) -> None:
        self._rounds = RecordFile(directory, resumption)
        self._completions = CompletionFile(directory, resumption)

    def append(self, record: RoundRecord, completions: Sequence[CompletionRecord]) -> None:
        """Add what a round gave."""
        self._completions.append(completions)
        self._rounds.append(record)
