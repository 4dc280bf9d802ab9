"""The collapse watch: every cause alone, by planted rounds, and none in a run that is well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.trainer.example_records import example_record
from vigor_trainer.monitoring.collapse import WARNINGS_FILE, Cause, CollapseWarning, CollapseWatch, warning_file
from vigor_trainer.monitoring.record_file import Resumption
from vigor_trainer.monitoring.records import RoundRecord
from vigor_trainer.monitoring.run_files import RunFiles

WELL: dict[str, Any] = {
    "reward_length_correlation": 0.1,
    "mean_entropy": 0.75,
    "mean_length": 32.0,
    "duplicate_share": 0.1,
    "tie_share": 0.0,
    "repetition": 0.05,
    "looping_share": 0.0,
    "norm_spread": 0.4,
}
NUM_ROUNDS = 4
PLANTED: dict[Cause, tuple[dict[str, Any], str]] = {
    "reward_length": ({"reward_length_correlation": -0.9}, "shorter completions win"),
    "duplicates": ({"duplicate_share": 0.75}, "75% of the completions are exact duplicates of another"),
    "ties": ({"tie_share": 0.6}, "60% of the completions have the same reward as a different completion"),
    "repetition": ({"looping_share": 0.5, "repetition": 0.6}, "60% of all 3-grams are repetitions, 5% at the start"),
    "entropy": (
        {"mean_entropy": 0.05},
        "0.050 nats, 0.750 at the start of the run: the policy has nearly stopped exploring",
    ),
    "length": ({"mean_length": 8.0}, "8 tokens, 32 at the start of the run"),
    "norm_spread": ({"norm_spread": 0.01}, "differ by 1.0% of their mean"),
}


class Run:
    """A watch that is told of rounds, and what it warned of."""

    def __init__(self, *, ranks: bool = True) -> None:
        self.warnings: list[CollapseWarning] = []
        self.records: list[RoundRecord] = []
        self.watch = CollapseWatch(ranks=ranks, on_warning=self.warnings.append, num_rounds=NUM_ROUNDS)
        self.step = 0

    def rounds(self, count: int, **changes: object) -> list[Cause]:
        """Tell of rounds that are well but for the changes; return the causes said so far."""
        for _ in range(count):
            self.records.append(example_record(self.step, **WELL | changes))
            self.watch.observe(self.records[-1])
            self.step += 1
        return [warning.cause for warning in self.warnings]


def test_every_cause_is_planted() -> None:
    assert set(PLANTED) == set(get_args(Cause))


@pytest.mark.parametrize("cause", PLANTED)
def test_each_cause_is_said_alone_and_once_with_what_to_try(cause: Cause) -> None:
    planted, _ = PLANTED[cause]
    run = Run()
    assert run.rounds(2 * NUM_ROUNDS) == []
    assert run.rounds(3 * NUM_ROUNDS, **planted) == [cause]
    [warning] = run.warnings
    assert "ry " in warning.advice
    assert 2 * NUM_ROUNDS < warning.step < 3 * NUM_ROUNDS
    assert str(warning) == f"step {warning.step}: {warning.seen} {warning.advice}"


@pytest.mark.parametrize("cause", PLANTED)
def test_a_warning_says_what_was_seen(cause: Cause) -> None:
    planted, seen = PLANTED[cause]
    # All of a window at once, since a warning is given as soon as the mean passes the limit.
    run = Run()
    run.watch = CollapseWatch(ranks=True, on_warning=run.warnings.append, num_rounds=1)
    run.rounds(1)
    assert run.rounds(1, **planted) == [cause]
    assert seen in run.warnings[0].seen


@pytest.mark.parametrize(("cause", "record"), [("entropy", {"mean_entropy": 4.0}), ("length", {"mean_length": 200.0})])
def test_what_grows_without_end_is_seen_too(cause: Cause, record: dict[str, Any]) -> None:
    run = Run()
    run.rounds(NUM_ROUNDS)
    assert run.rounds(NUM_ROUNDS, **record) == [cause]


def test_one_odd_round_is_no_collapse_and_nothing_is_said_before_a_window_is_full() -> None:
    run = Run()
    assert run.rounds(NUM_ROUNDS - 1, norm_spread=0.0) == []
    assert run.rounds(NUM_ROUNDS) == []
    assert run.rounds(1, mean_entropy=0.2, duplicate_share=1.0) == []


def test_a_task_with_many_duplicates_from_the_start_is_compared_with_its_start() -> None:
    run = Run()
    assert run.rounds(3 * NUM_ROUNDS, duplicate_share=0.6) == []
    assert run.rounds(NUM_ROUNDS, duplicate_share=0.8) == ["duplicates"]


def test_ties_of_answers_and_rounds_of_evaluations_do_not_count() -> None:
    assert Run(ranks=False).rounds(2 * NUM_ROUNDS, tie_share=1.0) == []
    assert Run().rounds(2 * NUM_ROUNDS, mode="eval", norm_spread=0.0) == []


def test_what_has_no_number_is_not_watched() -> None:
    missing = dict.fromkeys(["reward_length_correlation", "mean_entropy", "norm_spread", "tie_share"])
    assert Run().rounds(2 * NUM_ROUNDS, **missing) == []


def test_the_last_checkpoint_before_the_first_warning_is_the_last_good_one() -> None:
    run = Run()
    run.watch.saved("checkpoint-1")
    run.rounds(NUM_ROUNDS)
    run.watch.saved("checkpoint-4")
    run.rounds(NUM_ROUNDS, mean_entropy=0.0)
    run.watch.saved("checkpoint-8")
    run.rounds(NUM_ROUNDS, norm_spread=0.0)
    assert [warning.cause for warning in run.warnings] == ["entropy", "norm_spread"]
    assert {warning.last_good_checkpoint for warning in run.warnings} == {"checkpoint-4"}
    assert run.watch.last_good_checkpoint == "checkpoint-4"


def test_a_resumed_run_goes_on_with_the_rounds_and_warnings_of_before(tmp_path: Path) -> None:
    whole, before, after = Run(), Run(), Run()
    for run in (whole, before):
        run.watch.saved("checkpoint-0")
        run.rounds(2 * NUM_ROUNDS - 1, norm_spread=0.0)
    files = RunFiles(tmp_path)
    for record in before.records:
        files.append(record, [])
    for warning in before.warnings:
        files.warn(warning)
    after.step = before.step
    RunFiles(tmp_path, Resumption(before.step)).tell(after.watch)
    after.watch.saved("checkpoint-7")
    for run in (whole, after):
        run.rounds(NUM_ROUNDS, mean_entropy=0.01)
    assert after.watch.last_good_checkpoint == "checkpoint-0"
    assert [warning.cause for warning in before.warnings] == ["norm_spread"]
    assert [*before.warnings, *after.warnings] == whole.warnings


def test_memory_is_bounded_by_the_windows() -> None:
    run = Run()
    run.rounds(20 * NUM_ROUNDS)
    kept = [*run.watch._first.values(), *run.watch._last.values()]  # pyright: ignore[reportPrivateUsage]
    assert max(map(len, kept)) == NUM_ROUNDS


def test_warnings_are_recorded(tmp_path: Path) -> None:
    run = Run()
    run.rounds(NUM_ROUNDS, norm_spread=0.0)
    warning_file(tmp_path).append(*run.warnings)
    [line] = (tmp_path / WARNINGS_FILE).read_text().splitlines()
    assert json.loads(line)["cause"] == "norm_spread"
