"""Where the seconds of an optimizer step go: a timer, and one line per step in a file that the report reads.

The times of a step's rounds (generation, waiting for weights, scoring) are in `rounds.jsonl`. Does not know TRL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

from vigor_trainer.monitoring.record_file import RecordFile, Resumption, records_in

STEPS_FILE = "steps.jsonl"
Part = Literal["prepare", "optimize", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """The wall time of one optimizer step, from its beginning to the next step's, and its disjoint parts."""

    step: int  # optimizer steps taken when it began
    mode: Literal["train", "eval"] = "train"
    seconds: float
    prepare_seconds: float  # generation, waiting for weights, scoring, and TRL's preparation of the loss
    optimize_seconds: float  # loss, gradient and update
    evaluate_seconds: float  # after the update


def step_file(directory: Path, resumption: Resumption | None = None) -> RecordFile[StepRecord]:
    """Return `steps.jsonl` in a run's directory, to append to. Raises as ``RecordFile``."""
    return RecordFile(directory / STEPS_FILE, StepRecord, resumption)


def read_steps(directory: Path) -> list[StepRecord]:
    """Return the steps that have ended; empty for a run by a version that did not record them.

    Raises:
        ValueError: a line is not a record; names it.
    """
    return list(records_in(directory / STEPS_FILE, StepRecord))


class StepTimer:
    """Measures the parts of a step, and calls ``record`` when the next one begins or training ends.

    Time of a part that is measured inside another counts only for the inner part, so the parts never add up to more
    than the step.
    """

    def __init__(
        self, record: Callable[[StepRecord], object] = lambda _: None, *, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._record = record
        self._clock = clock
        self._step: int | None = None
        self._began = 0.0
        self._seconds: defaultdict[Part, float] = defaultdict(float)
        self._ended: dict[Part, float] = {}
        self._inner: list[float] = []  # for each part being measured: seconds of the parts inside it

    def begin(self, step: int) -> None:
        """Begin the step that follows ``step`` optimizer steps, and end the previous one."""
        self.end()
        self._step, self._began = step, self._clock()
        self._seconds.clear()

    def end(self) -> None:
        """Record the current step, if there is one."""
        if self._step is None:
            return
        seconds = self._clock() - self._began
        self._record(
            StepRecord(
                step=self._step,
                seconds=seconds,
                prepare_seconds=self._seconds["prepare"],
                optimize_seconds=self._seconds["optimize"],
                evaluate_seconds=self._seconds["evaluate"],
            )
        )
        self._step = None

    @contextmanager
    def measure(self, part: Part) -> Generator[None]:
        """Count the time of the block as this part of the step."""
        began = self._clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            self._ended[part] = self._clock()
            elapsed = self._ended[part] - began
            self._seconds[part] += elapsed - self._inner.pop()
            if self._inner:
                self._inner[-1] += elapsed

    def extend(self, part: Part) -> None:
        """Add the time since this part was last measured to it."""
        now = self._clock()
        self._seconds[part] += now - self._ended.get(part, now)
        self._ended[part] = now
