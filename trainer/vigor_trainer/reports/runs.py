"""Reads a run's directory for the report: rounds, groups of completions without their text, evaluations, log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

from vigor_client import ranks
from vigor_trainer.errors import InvalidRunError
from vigor_trainer.monitoring.completions import COMPLETIONS_FILE, SIGNALS, CompletionRecord, read_completions
from vigor_trainer.monitoring.evaluations import Decoding, EvaluationRecord, read_evaluations
from vigor_trainer.monitoring.records import RECORDS_FILE, RoundRecord, read_records
from vigor_trainer.monitoring.run_info import RunInfo, read_run_info
from vigor_trainer.monitoring.statistics import repetition
from vigor_trainer.monitoring.step_times import StepRecord, read_steps
from vigor_trainer.reports.held_out import HeldOut, read_held_out

_SIGNALS = {"vigor": ("scaled_grad_norm", -1), **SIGNALS}
"""``SIGNALS`` with the norm, for rewards that a run was not trained by."""

_STATE = "trainer_state.json"  # transformers writes this file to each checkpoint, and to the run's directory at the end


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion without its text. ``rank`` is its rank in the group, 1 the best. None means "no value"."""

    num_tokens: int
    num_characters: int
    is_truncated: bool
    repetition: float
    is_correct: bool | None
    grad_norm: float | None
    scaled_grad_norm: float | None
    values: Mapping[str, float | None]  # by name of reward; larger is better
    rank: float


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """The completions of one prompt in one round. ``step`` is the number of optimizer steps taken before it."""

    step: int
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Run:
    """A run's training rounds. ``rewards`` are the names of the rewards that it was trained by.

    ``num_recorded`` completions belong to whole rounds, of training and of evaluation. Earlier versions did not
    record ``steps``, nor all of ``info``.
    """

    name: str
    directory: Path
    num_recorded: int
    rounds: Sequence[RoundRecord]
    groups: Sequence[SampleGroup]
    rewards: Sequence[str]
    evaluations: Sequence[EvaluationRecord]
    log: Sequence[Mapping[str, float]]
    held_out_by_decoding: Mapping[Decoding, HeldOut]
    steps: Sequence[StepRecord]
    info: RunInfo | None

    @property
    def held_out(self) -> HeldOut | None:
        """Sampled completions of the held-out questions, or greedy ones if none were sampled."""
        return self.held_out_by_decoding.get("sampled") or self.held_out_by_decoding.get("greedy")


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """Return the runs, each named by the shortest unique end of its path.

    Raises:
        InvalidRunError: a directory is not a run, is not a complete one, or is given twice; says what to do.
    """
    names = _names([directory.resolve() for directory in directories])
    return [_read_run(directory, name) for directory, name in zip(directories, names, strict=True)]


def groups_of(directory: Path, num_recorded: int) -> Iterator[list[CompletionRecord]]:
    """Yield the groups of a run's training rounds, from its first ``num_recorded`` completions."""
    group: list[CompletionRecord] = []
    for record in islice(read_completions(directory), num_recorded):
        if group and not _continues(group[-1], record):
            yield group
            group = []
        if record.mode == "train":
            group.append(record)
    if group:
        yield group


def group_ranks(group: Sequence[CompletionRecord]) -> list[float]:
    """Return the rank of each completion by its norm, or, without norms, by the run's first reward."""
    by_norm = [record.rank for record in group if record.rank is not None]
    if len(by_norm) == len(group):
        return by_norm
    return ranks([-next(iter(record.rewards.values()), 0.0) for record in group])


def _names(directories: Sequence[Path]) -> list[str]:
    if twice := [path for path, count in Counter(directories).items() if count > 1]:
        raise InvalidRunError(f"{twice[0]} is given twice: give each run once")
    names: list[str] = []
    for num_parts in range(1, max(len(path.parts) for path in directories) + 1):
        names = ["/".join(path.parts[-num_parts:]) for path in directories]
        if len(set(names)) == len(names):
            break
    return names


def _read_run(directory: Path, name: str) -> Run:
    rounds = _rounds(directory)
    num_recorded = sum(record.num_completions for record in rounds)  # the file has more while a round is being written
    rewards: dict[str, None] = {}
    groups: list[SampleGroup] = []
    try:
        for group in groups_of(directory, num_recorded):
            rewards |= dict.fromkeys(name for record in group for name in record.rewards)
            groups.append(_sample_group(group))
        evaluations = read_evaluations(directory)
        held_out = read_held_out(directory, {evaluation.step for evaluation in evaluations})
        steps = read_steps(directory)
    except ValueError as error:
        raise InvalidRunError(_of_another_version(error)) from error
    training = [record for record in rounds if record.mode == "train"]
    found, told = sum(len(group.samples) for group in groups), sum(record.num_completions for record in training)
    if found < told:
        raise InvalidRunError(
            f"{directory / COMPLETIONS_FILE} has {found} completions, {RECORDS_FILE} counts {told}: it was not copied "
            "whole; copy both files again"
        )
    return Run(
        name=name,
        directory=directory,
        num_recorded=num_recorded,
        rounds=training,
        groups=groups,
        rewards=list(rewards),
        evaluations=evaluations,
        log=_log(directory),
        held_out_by_decoding=held_out,
        steps=steps,
        info=_info(directory),
    )


def _info(directory: Path) -> RunInfo | None:
    """Return the run's description; None if another version wrote it, since the other files can still be shown."""
    try:
        return read_run_info(directory)
    except ValueError:
        return None


def _rounds(directory: Path) -> list[RoundRecord]:
    if not directory.is_dir():
        raise InvalidRunError(f"{directory} is no directory: give the --output_dir of a run")
    for file in (RECORDS_FILE, COMPLETIONS_FILE):
        if not (directory / file).exists():
            raise InvalidRunError(
                f"{directory} has no {file}: give the --output_dir of a run that this version of vigor-trainer has "
                "made, after its first step"
            )
    try:
        rounds = read_records(directory)
    except ValueError as error:
        raise InvalidRunError(_of_another_version(error)) from error
    if not any(record.mode == "train" for record in rounds):
        raise InvalidRunError(f"{directory / RECORDS_FILE} has no training round yet: wait for the first step")
    return rounds


def _of_another_version(error: ValueError) -> str:
    return f"{error}; show the run with the version that it was trained with, or train it again"


def _continues(last: CompletionRecord, record: CompletionRecord) -> bool:
    same_group = (last.step, last.mode, last.group) == (record.step, record.mode, record.group)
    return same_group and record.index > last.index  # a step may have several rounds


def _sample_group(group: Sequence[CompletionRecord]) -> SampleGroup:
    return SampleGroup(
        group[0].step,
        [
            Sample(
                num_tokens=record.num_tokens,
                num_characters=len(record.completion),
                is_truncated=record.finish_reason == "length",
                repetition=repetition(record.completion_ids),
                is_correct=record.is_correct,
                grad_norm=record.grad_norm,
                scaled_grad_norm=record.scaled_grad_norm,
                values=_values(record),
                rank=rank,
            )
            for record, rank in zip(group, group_ranks(group), strict=True)
        ],
    )


def _values(record: CompletionRecord) -> dict[str, float | None]:
    """Return each reward's value of a completion: the run's own rewards as recorded, others from their signal."""
    values: dict[str, float | None] = {}
    for name, (field, sign) in _SIGNALS.items():
        signal = cast("float | None", getattr(record, field))
        values[name] = None if signal is None else sign * signal
    return values | dict(record.rewards)


def _log(directory: Path) -> list[Mapping[str, float]]:
    """Return TRL's log from the newest complete state of the trainer; empty if there is no such state."""
    newest: list[Mapping[str, float]] = []
    for path in [directory / _STATE, *directory.glob(f"checkpoint-*/{_STATE}")]:
        try:
            state = json.loads(path.read_bytes())
        except (OSError, ValueError):  # missing, or the run was killed while writing it
            continue
        history = cast("dict[str, object]", state).get("log_history") if isinstance(state, dict) else None
        if isinstance(history, list) and len(cast("list[object]", history)) > len(newest):
            newest = cast("list[Mapping[str, float]]", history)
    return newest
