"""The two files of a run: a line per round, and a line per completion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vigor_trainer.monitoring.completions import CompletionRecord, completion_file
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.monitoring.records import RoundRecord, round_file


class RunFiles:
    """Appends to `rounds.jsonl` and `completions.jsonl` in a run's directory.

    Raises:
        ValueError: a resumed run's files hold something else than records; names the line.
    """

    def __init__(self, directory: Path, resumption: Resumption | None = None) -> None:
        self._rounds = round_file(directory, resumption)
        self._completions = completion_file(directory, resumption)

    def append(self, record: RoundRecord, completions: Sequence[CompletionRecord]) -> None:
        """Add what a round gave."""
        self._completions.append(*completions)
        self._rounds.append(record)
