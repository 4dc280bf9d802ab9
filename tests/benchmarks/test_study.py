"""The study: works with known mistakes, curves from completions, intervals over seeds, and whole runs that go on."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.study.__main__ import main
from benchmarks.study.curves import RunCurve, Window, curve_of, read_curve, write_curve
from benchmarks.study.subjects import SUBJECTS
from benchmarks.study.tables import STUDENT_T, interval, tables_of
from tests.trainer.example_records import example_completion
from vigor_trainer.monitoring.collapse import CollapseWarning, warning_file
from vigor_trainer.monitoring.completions import completion_file


def test_a_curve_is_what_the_completions_of_each_window_say(tmp_path: Path) -> None:
    lines = [
        example_completion(
            step,
            group=0,
            index=index,
            completion=f"answer {index % 3}",
            completion_ids=[1, 2, 3, 1, 2, 3],
            rewards={"entropy": float(index)},
            is_correct=index == 3 or (step >= 2 and index == 0),
        )
        for step in range(4)
        for index in range(4)
    ]
    completion_file(tmp_path).append(*lines)
    first, second = curve_of(tmp_path, "entropy", 2).windows
    assert (first.first_step, first.num_completions, first.accuracy, first.auc) == (0, 8, 0.25, 1.0)
    assert (second.first_step, second.accuracy, second.auc) == (2, 0.5, 0.5)
    assert (first.distinct, first.repetition) == (0.75, 0.25)
    write_curve(tmp_path / "curve.json", RunCurve([first, second]))
    assert read_curve(tmp_path / "curve.json") == RunCurve([first, second])


def curve(*accuracies: float) -> RunCurve:
    return RunCurve(
        [
            Window(
                first_step=10 * number,
                num_completions=64,
                accuracy=accuracy,
                auc=0.5,
                mean_tokens=20.0,
                clipped=0.0,
                mean_entropy=0.5,
                repetition=0.0,
                distinct=1.0,
            )
            for number, accuracy in enumerate(accuracies)
        ]
    )


def test_a_run_is_also_told_where_the_watch_has_warned(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve.json", curve(0.5, 0.9, 0.7, 0.3))
    warned: dict[str, Any] = {"cause": "duplicates", "seen": "", "advice": "", "last_good_checkpoint": None}
    first, second = CollapseWarning(step=11, **warned), CollapseWarning(step=29, **{**warned, "cause": "entropy"})
    warning_file(tmp_path).append(first, second)
    run = read_curve(tmp_path / "curve.json")
    [end] = tables_of(SUBJECTS["random-slips"], {"vigor": {1: run}})[0].rows
    assert (end["at_first_warning"], end["at_entropy_warning"], end["last"]) == (0.9, 0.7, 0.3)
    assert run.at(None) is run.last


def test_each_reward_is_compared_with_the_control_of_its_own_seeds() -> None:
    curves = {
        "vigor": {1: curve(0.5, 0.9), 2: curve(0.5, 0.7), 3: curve(0.4, 0.8)},
        "random": {1: curve(0.5, 0.3), 2: curve(0.5, 0.1)},  # its third run is still to be done
    }
    ends, _, points, runs = tables_of(SUBJECTS["random-slips"], curves)
    vigor, random = ends.rows
    assert vigor["last"] == pytest.approx(0.8)
    assert vigor["against_control"] == "+0.600 to +0.600"
    assert random["against_control"] is None
    assert random["against_start"] == "-1.571 to +0.971"
    assert [row["accuracy"] for row in points.rows] == pytest.approx([1.4 / 3, 0.8, 0.5, 0.2])
    assert [row["seed"] for row in runs.rows] == [1, 2, 3, 1, 2]


def test_the_interval_over_seeds_holds_the_mean_as_often_as_it_says() -> None:
    draw, held = Random(0), 0
    for _ in range(1000):
        bounds = interval([draw.gauss(0.6, 0.1) for _ in range(5)])
        assert bounds is not None
        held += bounds[0] <= 0.6 <= bounds[1]
    assert 0.93 < held / 1000 < 0.97
    assert interval([0.5]) is None
    assert sorted(STUDENT_T.values(), reverse=True) == list(STUDENT_T.values())


@pytest.mark.slow
def test_the_study_trains_every_variant_that_is_asked_for_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--subject", "random-slips", "--base-steps", "20", "--steps", "2", "--directory", str(tmp_path)]
    chosen = ["--variant", "vigor without rank", "--variant", "random", "--out", str(tmp_path / "study")]
    first = main([*flags, *chosen, "--seeds", "1"])
    assert [row["num_seeds"] for row in first.table("random-slips: ends").rows] == [1, 1]
    capsys.readouterr()
    second = main([*flags, *chosen, "--seeds", "2", "--lanes", "1"])
    said = [
        line for line in capsys.readouterr().out.splitlines() if "accuracy" in line and "seed" in line and "->" in line
    ]
    assert [line.partition(":")[0] for line in said] == [
        f"random-slips, {name}, seed 2" for name in ("vigor without rank", "random")
    ]
    assert [row["num_seeds"] for row in second.table("random-slips: ends").rows] == [2, 2]
    assert (tmp_path / "study.md").exists()
