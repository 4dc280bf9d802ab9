"""Watches a run for the known ways in which intrinsic rewards collapse, and warns once of each, with advice.

Intrinsic rewards tend to help first and to harm later (arXiv 2506.17219, 2603.08660). No labels are used. Means over
the last rounds are compared with a fixed limit, or with the first rounds of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from vigor_trainer.monitoring.record_file import RecordFile, Resumption, records_in
from vigor_trainer.monitoring.records import RoundRecord

WARNINGS_FILE = "warnings.jsonl"
WINDOW = 10
"""Number of rounds over which means are taken."""

MAX_REWARD_LENGTH = 0.8
MAX_DUPLICATES = 0.5
MAX_TIES = 0.5
MAX_LOOPING = 0.25
MIN_NORM_SPREAD = 0.02
MIN_ENTROPY_CHANGE, MAX_ENTROPY_CHANGE = 0.2, 3.0
MIN_LENGTH_CHANGE, MAX_LENGTH_CHANGE = 1 / 3, 3.0

Cause = Literal["reward_length", "duplicates", "ties", "repetition", "entropy", "length", "norm_spread"]
Means = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseWarning:
    """An observation at a step, and advice. ``last_good_checkpoint`` was saved before the run's first warning."""

    step: int
    mode: Literal["train", "eval"] = "train"
    cause: Cause
    seen: str
    advice: str
    last_good_checkpoint: str | None

    def __str__(self) -> str:
        return f"step {self.step}: {self.seen} {self.advice}"


def warning_file(directory: Path, resumption: Resumption | None = None) -> RecordFile[CollapseWarning]:
    """Return `warnings.jsonl` in a run's directory, to append to. Raises as ``RecordFile``."""
    return RecordFile(directory / WARNINGS_FILE, CollapseWarning, resumption)


def read_warnings(directory: Path) -> list[CollapseWarning]:
    """Return the warnings of a run so far. Raises ValueError if a line is not a warning; names it."""
    return list(records_in(directory / WARNINGS_FILE, CollapseWarning))


class CollapseWatch:
    """Receives every round, and calls ``on_warning`` once per cause.

    ``ranks``: the reward orders completions, so ties mean that it cannot tell them apart; rewards of answers often tie.
    """

    def __init__(self, *, ranks: bool, on_warning: Callable[[CollapseWarning], None], num_rounds: int = WINDOW) -> None:
        self._ranks = ranks
        self._on_warning = on_warning
        self._num_rounds = num_rounds
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[float]] = {}
        self._warned: set[Cause] = set()
        self.last_good_checkpoint: str | None = None

    @property
    def has_warned(self) -> bool:
        return bool(self._warned)

    def saved(self, checkpoint: str) -> None:
        """Record a checkpoint; until the first warning it is the last good one."""
        if not self.has_warned:
            self.last_good_checkpoint = checkpoint

    def resume(self, records: Iterable[RoundRecord], warnings: Iterable[CollapseWarning]) -> None:
        """Take in the records from before a resumption: rounds, and warnings, which are not repeated."""
        for record in records:
            if record.mode == "train":
                self._take_in(record)
        for warning in warnings:
            if not self.has_warned:
                self.last_good_checkpoint = warning.last_good_checkpoint
            self._warned.add(warning.cause)

    def observe(self, record: RoundRecord) -> None:
        """Take in a round, and warn of any cause seen in the last rounds; evaluation rounds do not count."""
        if record.mode == "eval":
            return
        self._take_in(record)
        for cause, (seen, advice) in self._found().items():
            if cause not in self._warned:
                self._warned.add(cause)
                self._on_warning(
                    CollapseWarning(
                        step=record.step,
                        cause=cause,
                        seen=seen,
                        advice=advice,
                        last_good_checkpoint=self.last_good_checkpoint,
                    )
                )

    def _take_in(self, record: RoundRecord) -> None:
        for name, value in _watched(record, self._ranks).items():
            if value is None:
                continue
            first = self._first.setdefault(name, [])
            if len(first) < self._num_rounds:
                first.append(value)
            self._last.setdefault(name, deque(maxlen=self._num_rounds)).append(value)

    def _found(self) -> dict[Cause, tuple[str, str]]:
        whole = {name for name, values in self._last.items() if len(values) == self._num_rounds}
        first = {name: fmean(self._first[name]) for name in whole}
        last = {name: fmean(self._last[name]) for name in whole}
        return {cause: said for cause, rule in _RULES.items() if (said := rule(first, last)) is not None}


def _watched(record: RoundRecord, ranks: bool) -> dict[str, float | None]:
    return {
        "reward_length": record.reward_length_correlation,
        "duplicates": record.duplicate_share,
        "ties": record.tie_share if ranks else None,
        "looping": record.looping_share,
        "repetition": record.repetition,
        "entropy": record.mean_entropy,
        "length": record.mean_length,
        "norm_spread": record.norm_spread,
    }


def _reward_length(_: Means, last: Means) -> tuple[str, str] | None:
    value = last.get("reward_length")
    if value is None or abs(value) < MAX_REWARD_LENGTH:
        return None
    longer = "longer" if value > 0 else "shorter"
    return (
        f"Rewards follow length: within groups their correlation is {value:+.2f}, so {longer} completions win.",
        "Compare with --reward random; try another reward, --vigor_sqrt_length, or a longer --max_completion_length.",
    )


def _duplicates(first: Means, last: Means) -> tuple[str, str] | None:
    value = last.get("duplicates", 0.0)
    if value < _raised(MAX_DUPLICATES, first.get("duplicates", 0.0)):
        return None
    return (
        f"{value:.0%} of the completions are exact duplicates of another one in their group.",
        "Try a higher --temperature or --beta, a lower --learning_rate, or an earlier checkpoint.",
    )


def _ties(_: Means, last: Means) -> tuple[str, str] | None:
    value = last.get("ties", 0.0)
    if value < MAX_TIES:
        return None
    return (
        f"{value:.0%} of the completions have the same reward as a different completion in their group.",
        "The reward cannot rank them: try another one, or a service in float32.",
    )


def _repetition(first: Means, last: Means) -> tuple[str, str] | None:
    value = last.get("looping", 0.0)
    if value < _raised(MAX_LOOPING, first.get("looping", 0.0)):
        return None
    return (
        f"{value:.0%} of the completions repeat themselves to their end; {last['repetition']:.0%} of all 3-grams are "
        f"repetitions, {first['repetition']:.0%} at the start of the run.",
        "Try a lower --learning_rate, a higher --beta, or an earlier checkpoint.",
    )


def _entropy(first: Means, last: Means) -> tuple[str, str] | None:
    change = _change("entropy", first, last)
    if change is None or MIN_ENTROPY_CHANGE < change < MAX_ENTROPY_CHANGE:
        return None
    what = "has nearly stopped exploring" if change < 1 else "is becoming less and less certain"
    return (
        f"The mean entropy is {last['entropy']:.3f} nats, {first['entropy']:.3f} at the start of the run: "
        f"the policy {what}.",
        "Try a lower --learning_rate, a higher --beta or --entropy_coef, or an earlier checkpoint.",
    )


def _length(first: Means, last: Means) -> tuple[str, str] | None:
    change = _change("length", first, last)
    if change is None or MIN_LENGTH_CHANGE < change < MAX_LENGTH_CHANGE:
        return None
    return (
        f"The mean length is {last['length']:.0f} tokens, {first['length']:.0f} at the start of the run.",
        "Compare completions from the start and from now; try a longer --max_completion_length, a lower "
        "--learning_rate or a higher --beta.",
    )


def _norm_spread(_: Means, last: Means) -> tuple[str, str] | None:
    value = last.get("norm_spread")
    if value is None or value > MIN_NORM_SPREAD:
        return None
    return (
        f"Within groups the norms differ by {value:.1%} of their mean, so their ranks are mostly noise.",
        f"Try --min_spread {MIN_NORM_SPREAD:g}, which gives such groups no reward, or larger groups.",
    )


def _raised(limit: float, first: float) -> float:
    """Return the limit, or, if larger, the value a quarter of the way from the run's first mean to 1."""
    return max(limit, first + (1 - first) / 4)


def _change(name: str, first: Means, last: Means) -> float | None:
    return last[name] / first[name] if first.get(name, 0.0) > 0 else None


_RULES: Mapping[Cause, Callable[[Means, Means], tuple[str, str] | None]] = {
    "reward_length": _reward_length,
    "duplicates": _duplicates,
    "ties": _ties,
    "repetition": _repetition,
    "entropy": _entropy,
    "length": _length,
    "norm_spread": _norm_spread,
}
"""Cause -> function that returns observation and advice, or None while the cause is not seen."""
