"""The title and the sentences of a report, of runs whose numbers are planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.monitoring.test_run_info import example_info
from tests.trainer.reports.example_runs import example_evaluation, write_evaluations, write_run
from vigor_trainer.monitoring.evaluations import evaluation_file
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.run_info import write_run_info
from vigor_trainer.reports.runs import read_runs
from vigor_trainer.reports.verdict import Verdict, verdict

BEFORE = [0.4, 0.4, 0.4, 0.4]
UP, DOWN, MIXED = [0.9, 0.8, 0.7, 0.8], [0.1, 0.0, 0.1, 0.2], [0.6, 0.2, 0.5, 0.3]
FAR_DOWN = [0.0, 0.0, 0.0, 0.0]
RIGHT, WRONG, HALF = [True] * 4, [False] * 4, [True, False, True, False]


def told(tmp_path: Path, **after: Sequence[float]) -> Verdict:
    """What is said of runs with these names, whose held-out accuracies began alike and ended so."""
    runs = [
        write_evaluations(write_run(tmp_path / name, num_steps=1), BEFORE, shares) for name, shares in after.items()
    ]
    return verdict(read_runs(runs))


@pytest.mark.parametrize(
    ("vigor", "control", "title"),
    [
        (
            UP,
            BEFORE,
            "vigor beats random by 40 points [32, 48]: sampled held-out accuracy rose from 40 % to 80 % with ",
        ),
        (UP, DOWN, "rose from 40 % to 80 % with vigor and fell from 40 % to 10 % with random"),
        (
            DOWN,
            UP,
            "vigor loses to random by 70 points [60, 80]: sampled held-out accuracy fell from 40 % to 10 % ",
        ),
        (
            DOWN,
            FAR_DOWN,
            "vigor beats random by 10 points [2, 18], but harmed the model: sampled ",
        ),
        (MIXED, BEFORE, "No difference between vigor and random beyond the 95 % interval: +0 points ["),
    ],
    ids=["better", "better, and the control worse", "worse", "less harm", "undecided"],
)
def test_the_title_of_two_runs_is_that_of_their_numbers(
    tmp_path: Path, vigor: list[float], control: list[float], title: str
) -> None:
    assert title in told(tmp_path, vigor=vigor, random=control).title


@pytest.mark.parametrize(
    ("after", "title"),
    [
        (UP, "vigor improved the model: sampled held-out accuracy rose 40 % [40, 40] → 80 % ["),
        (DOWN, "vigor harmed the model: sampled held-out accuracy fell 40 % [40, 40] → 10 % ["),
        (MIXED, "vigor changed nothing beyond the 95 % interval: sampled held-out accuracy 40 % [40, 40] → 40 % ["),
    ],
    ids=["up", "down", "undecided"],
)
def test_one_run_alone_is_told_from_its_start(tmp_path: Path, after: list[float], title: str) -> None:
    found = told(tmp_path, vigor=after)
    assert found.title.startswith(title)
    assert found.sentences[0].startswith(title)


@pytest.mark.parametrize(
    ("after", "greedy", "effect"),
    [
        (
            UP,
            WRONG,
            "vigor helped sampling and harmed greedy decoding: sampled held-out accuracy rose ",
        ),
        (DOWN, RIGHT, "vigor harmed sampling and helped greedy decoding: "),
        (MIXED, WRONG, "vigor harmed greedy decoding: "),
        (UP, HALF, "vigor improved the model: "),
        (DOWN, WRONG, "vigor harmed the model: "),
        (MIXED, HALF, "vigor changed nothing beyond the 95 % interval: "),
    ],
)
def test_greedy_accuracy_counts_for_the_words_too(
    tmp_path: Path, after: list[float], greedy: list[bool], effect: str
) -> None:
    before = [not right for right in greedy] if greedy is not HALF else HALF
    run = write_evaluations(write_run(tmp_path / "vigor", num_steps=1), BEFORE, after, greedy=[before, greedy])
    found = verdict(read_runs([run]))
    assert found.title.startswith(effect)
    assert "; greedy accuracy " in found.title


def test_the_title_of_two_runs_tells_a_loss_of_greedy_accuracy(tmp_path: Path) -> None:
    runs = [
        write_evaluations(write_run(tmp_path / name, num_steps=1), BEFORE, after, greedy=[RIGHT, WRONG])
        for name, after in (("vigor", UP), ("random", DOWN))
    ]
    title = verdict(read_runs(runs)).title
    assert title.endswith("with random; greedy accuracy fell from 100 % to 0 % with vigor")


def test_the_sentences_have_every_run_with_intervals_and_what_they_are_over(tmp_path: Path) -> None:
    found = told(tmp_path, vigor=UP, random=DOWN, entropy=BEFORE)
    assert found.title.startswith("vigor improved the model")
    compared = [sentence.split(" by ")[0] for sentence in found.sentences[:2]]
    assert compared == ["vigor beats random", "vigor beats entropy"]
    assert found.sentences[3].startswith("random harmed the model: sampled held-out accuracy fell 40 % [40, 40] → 10 %")
    assert "the 4 held-out questions would give, with 10 sampled completions of each" in found.sentences[-1]


def test_questions_without_labels_give_no_verdict(tmp_path: Path) -> None:
    run = write_evaluations(write_run(tmp_path / "run", num_steps=1), BEFORE, UP, is_correct=None)
    found = verdict(read_runs([run]))
    assert found.title == "run: no held-out accuracy was measured"
    assert found.sentences[0].startswith("The held-out questions have no answers and no tests")


def test_runs_without_evaluations_give_no_verdict(tmp_path: Path) -> None:
    found = verdict(read_runs([write_run(tmp_path / name, num_steps=1) for name in "abc"]))
    assert found.title == "a, b and c: no held-out accuracy was measured"
    assert found.sentences[0].endswith("needs evaluations during training: --eval_dataset with --eval_every.")


def test_a_run_that_is_still_training_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    runs = [write_evaluations(write_run(tmp_path / name, num_steps=1), BEFORE) for name in ("a", "b")]
    found = verdict(read_runs(runs))
    assert "a: sampled held-out accuracy 40 % [40, 40] at step 0, not measured since." in found.sentences
    assert "not compared" in found.title


def test_runs_on_other_questions_are_not_compared(tmp_path: Path) -> None:
    ours = write_evaluations(write_run(tmp_path / "ours", num_steps=1), BEFORE, UP)
    theirs = write_evaluations(write_run(tmp_path / "theirs", num_steps=1), BEFORE, UP, prompt="another question")
    found = verdict(read_runs([ours, theirs]))
    assert found.title.startswith("ours and theirs are not compared, since they were not evaluated before and after on")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # TRL's own
def test_runs_of_different_models_are_not_compared(tmp_path: Path) -> None:
    runs = [
        write_evaluations(write_run(tmp_path / name, num_steps=1), BEFORE, after)
        for name, after in (("slips", UP), ("carries", DOWN))
    ]
    for run in runs:
        write_run_info(run, replace(example_info(), model=f"models/{run.name}"))
    found = verdict(read_runs(runs))
    assert found.title == (
        "slips and carries are not compared, since they trained different models: sampled held-out accuracy rose from "
        "40 % to 80 % with slips and fell from 40 % to 10 % with carries"
    )
    assert found.sentences[0] == "slips and carries are not compared, since they trained different models."


def test_a_run_without_its_completions_has_accuracies_and_no_interval_of_their_change(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=1)
    shares = Estimate(0.5, 0.4, 0.6), Estimate(0.8, 0.7, 0.9)
    evaluation_file(run).append(*(example_evaluation(4 * step, share) for step, share in enumerate(shares)))
    assert verdict(read_runs([run])).title == (
        "run: sampled held-out accuracy 50 % [40, 60] → 80 % [70, 90]; the interval of the change was not recorded"
    )
