"""The numbers behind the plots, against what was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.example_records import example_record
from tests.trainer.reports.example_runs import example_evaluation, write_run
from vigor_trainer.monitoring.evaluations import EvaluationRecord
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.reports import curves
from vigor_trainer.reports.curves import (
    accuracy_share,
    auc_over_steps,
    by_rank,
    held_out_accuracy,
    norms_against_length,
    over_steps,
)
from vigor_trainer.reports.runs import Run, Sample, SampleGroup, read_runs


def sample(rank: float = 1.0, **changes: object) -> Sample:
    given: dict[str, object] = {
        "num_tokens": 10,
        "num_characters": 40,
        "is_truncated": False,
        "repetition": 0.0,
        "is_correct": True,
        "grad_norm": 1.0,
        "scaled_grad_norm": 2.0,
        "values": {"vigor": -rank},
        "rank": rank,
    }
    return Sample(**(given | changes))  # pyright: ignore[reportArgumentType] - fields by name


def group(step: int, *labels: bool | None) -> SampleGroup:
    return SampleGroup(step, [sample(rank, is_correct=label) for rank, label in enumerate(labels, start=1)])


def run_of(*groups: SampleGroup) -> Run:
    return Run("run", Path(), 0, [example_record(0)], groups, ["vigor"], [], [], {}, [], None)


def test_accuracy_is_that_of_each_step_with_an_interval_over_groups() -> None:
    groups = [group(0, True, False), group(0, True, True), group(1, False, False), group(2, None, None)]
    curve = over_steps(groups, accuracy_share)
    assert (curve["x"], curve["value"]) == ([0.0, 1.0], [0.75, 0.0])
    assert (curve["low"][0], curve["high"][0]) == (0.5, 1.0)


def test_many_steps_are_put_together() -> None:
    groups = [group(step, step % 2 == 0) for step in range(100)]
    curve = over_steps(groups, accuracy_share)
    assert curve["span"][:2] == [(0, 4), (5, 9)]
    assert len(curve["x"]) <= curves.MAX_WINDOWS
    assert sum(curve["value"]) / len(curve["value"]) == 0.5


def test_auc_counts_the_ordered_pairs_within_groups() -> None:
    run = run_of(group(0, True, True, False, False), group(0, False, True), group(1, True, True))
    curve = auc_over_steps(run)["vigor"]
    assert curve["value"] == [4 / 5], "four pairs in order, one not; where all are right there is no pair"


def test_a_reward_that_says_nothing_has_no_curve_and_the_label_is_not_compared_with_itself() -> None:
    values = {"vigor": None, "verifier": 1.0, "entropy": 0.5}
    found = SampleGroup(0, [sample(values=values), sample(is_correct=False, values=values | {"entropy": 0.25})])
    curve = auc_over_steps(run_of(found))
    assert list(curve) == ["entropy"]
    assert curve["entropy"]["value"] == [1.0]


def test_held_out_accuracy_is_that_of_the_evaluations_with_their_intervals() -> None:
    estimates = [Estimate(0.5, 0.25, 0.75), Estimate(0.75, 0.5, 1.0)]
    curves = held_out_accuracy([example_evaluation(20 * index, sampled) for index, sampled in enumerate(estimates)])
    assert list(curves) == ["sampled"], "there was no label for the greedy ones"
    assert curves["sampled"] == {
        "x": [0, 20],
        "span": [(0, 0), (20, 20)],
        "value": [0.5, 0.75],
        "low": [0.25, 0.5],
        "high": [0.75, 1.0],
    }
    without_samples = EvaluationRecord(step=0, seconds=1.0, metrics={"greedy": {"accuracy": None}, "sampled": None})
    assert held_out_accuracy([without_samples]) == {}


def test_in_groups_of_eight_a_bin_is_a_rank() -> None:
    groups = [SampleGroup(0, [sample(rank, num_tokens=10 * rank) for rank in range(1, 9)]) for _ in range(3)]
    bins = by_rank(groups)["length"]
    assert bins["x"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert bins["value"] == [10, 20, 30, 40, 50, 60, 70, 80]


@pytest.mark.parametrize(("size", "bins"), [(2, [3, 7]), (4, [2, 4, 6, 8]), (16, [1, 2, 3, 4, 5, 6, 7, 8])])
def test_other_groups_fill_eighths(size: int, bins: list[int]) -> None:
    found = by_rank([SampleGroup(0, [sample(rank) for rank in range(1, size + 1)])])
    assert found["accuracy"]["x"] == bins


def test_slopes_are_those_of_the_logarithms_and_the_points_are_bounded() -> None:
    lengths = range(10, 4010)
    samples = [sample(num_tokens=length, grad_norm=3 / length**0.5, scaled_grad_norm=3.0) for length in lengths]
    norms = norms_against_length([SampleGroup(0, [*samples, sample(grad_norm=None, scaled_grad_norm=None)])])
    assert norms["slopes"] == [pytest.approx(-0.5), pytest.approx(0)]
    assert len(norms["tokens"]) <= curves.MAX_SCATTERED
    assert norms["norm"][0] == 3 / 10**0.5
    assert norms_against_length([])["slopes"] == [None, None]


def test_what_many_groups_add_to_a_ratio_is_added_up_in_blocks(tmp_path: Path) -> None:
    [run] = read_runs([write_run(tmp_path / "run", num_steps=1, num_groups=1500, size=2, num_words=4)])
    shares = [accuracy_share(found) for found in run.groups]
    [value] = over_steps(run.groups, accuracy_share)["value"]
    assert value == sum(top for top, _ in shares) / sum(bottom for _, bottom in shares)


def test_lines_leave_out_what_was_not_measured_and_are_means_where_there_is_much() -> None:
    rounds = [example_record(step, mean_entropy=None if step == 1 else float(step)) for step in range(3)]
    assert curves.metric_line(rounds, lambda record: record.mean_entropy) == {"x": [0, 2], "y": [0, 2]}
    log = [{"step": step, "kl": 1.0} for step in range(1000)] + [{"step": 1000, "loss": 1.0}]
    line = curves.logged_line(log, "kl")
    assert (len(line["x"]), line["x"][0], line["y"][-1]) == (200, 2.0, 1.0)
