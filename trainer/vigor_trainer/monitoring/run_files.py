"""The files of a run: a line per round, completion, optimizer step and warning, and what the run is."""

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
    """Make the directory of a run or of results, so that one that cannot be is known before anything is loaded.

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

    So a run that cannot begin leaves what an earlier one wrote.

    Raises:
        ValueError: a resumed run's files hold something else than records; names the line.
    """

    def __init__(self, directory: Path, resumption: Resumption | None = None) -> None:
        self._directory = directory
        self._info: RunInfo | None = None
        self._rounds = round_file(directory, resumption)
        self._completions = completion_file(directory, resumption)
        self._warnings = warning_file(directory, resumption)
        self._steps = step_file(directory, resumption)

    def tell(self, watch: CollapseWatch) -> None:
        """Tell the watch of a resumed run what was recorded before; of a new one there is nothing."""
        watch.resume(self._rounds.earlier(), self._warnings.earlier())

    def describe(self, info: RunInfo) -> None:
        """Keep what the run is until its first round."""
        self._info = info

    def append(self, record: RoundRecord, completions: Sequence[CompletionRecord]) -> None:
        """Add what a round gave."""
        if self._info is not None:
            write_run_info(self._directory, self._info)
            self._info = None
        self._warnings.append()  # none of an earlier run
        self._steps.append()  # likewise
        self._completions.append(*completions)
        self._rounds.append(record)

    def append_step(self, step: StepRecord) -> None:
        """Add where the seconds of a step went, after its rounds."""
        self._steps.append(step)

    def warn(self, warning: CollapseWarning) -> None:
        """Add what the collapse watch has seen, after the round in which it did."""
        self._warnings.append(warning)
