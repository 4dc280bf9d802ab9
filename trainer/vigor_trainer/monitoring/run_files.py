"""The files of a run: a line per round, completion, optimizer step and warning, and the description of the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vigor_trainer.errors import UnsupportedSettingError
from vigor_trainer.monitoring.collapse import CollapseWarning, CollapseWatch, warning_file
from vigor_trainer.monitoring.completions import CompletionRecord, completion_file
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.monitoring.records import RoundRecord, round_file
from vigor_trainer.monitoring.run_info import RunInfo, write_run_info
from vigor_trainer.monitoring.step_times import StepRecord, step_file


def output_directory(setting: str, *, flag: str) -> Path:
    """Make and return the directory of a run or of results, before anything slow is loaded.

    Raises:
        UnsupportedSettingError: nothing can be written there; names the flag.
    """
    directory = Path(setting)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnsupportedSettingError(f"{flag}: {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UnsupportedSettingError(f"{flag}: {directory}: nothing can be written there")
    return directory


class RunFiles:
    """Appends to a run's files of records, and writes `run.json` with the first round.

    So a run that cannot begin keeps the files of an earlier run.

    Raises:
        ValueError: a line of a resumed run's files is not a record; names it.
    """

    def __init__(self, directory: Path, resumption: Resumption | None = None) -> None:
        self._directory = directory
        self._info: RunInfo | None = None
        self._rounds = round_file(directory, resumption)
        self._completions = completion_file(directory, resumption)
        self._warnings = warning_file(directory, resumption)
        self._steps = step_file(directory, resumption)

    def tell(self, watch: CollapseWatch) -> None:
        """Pass the earlier records of a resumed run to the watch; a new run has none."""
        watch.resume(self._rounds.earlier(), self._warnings.earlier())

    def describe(self, info: RunInfo) -> None:
        """Keep the description of the run until its first round."""
        self._info = info

    def append(self, record: RoundRecord, completions: Sequence[CompletionRecord]) -> None:
        """Append the records of a round."""
        if self._info is not None:
            write_run_info(self._directory, self._info)
            self._info = None
        self._warnings.append()  # no records: this removes those of an earlier run
        self._steps.append()  # likewise
        self._completions.append(*completions)
        self._rounds.append(record)

    def append_step(self, step: StepRecord) -> None:
        """Append the times of a step, after its rounds."""
        self._steps.append(step)

    def warn(self, warning: CollapseWarning) -> None:
        """Append a warning of the collapse watch, after the round that caused it."""
        self._warnings.append(warning)
