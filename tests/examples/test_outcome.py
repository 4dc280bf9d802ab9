"""What the demo says of two runs that were measured on the same questions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from examples.demo.outcome import Outcome, accuracy_table, verdict
from tests.trainer.evaluation.examples import evaluated
from vigor_trainer.evaluation.completions import EvaluatedCompletion


def outcome(reward: str, before: Sequence[float], after: Sequence[float]) -> Outcome:
    """Ten samples of each question, of which this share is right."""
    shares = {0: before, 8: after}
    return Outcome(reward, {step: [ten(*numbered) for numbered in enumerate(found)] for step, found in shares.items()})


def ten(question: int, share: float) -> list[EvaluatedCompletion]:
    return [evaluated(question, index, is_correct=index < 10 * share) for index in range(10)]


@pytest.mark.parametrize(
    ("after", "control", "said"),
    [
        ([0.9, 0.8, 0.7, 0.9], [0.4, 0.4, 0.4, 0.4], "vigor has taught, and more than random: "),
        ([0.4, 0.3, 0.5, 0.4], [0.1, 0.0, 0.1, 0.1], "vigor has not taught, but done less harm than random: "),
        ([0.2, 0.2, 0.1, 0.1], [0.4, 0.4, 0.4, 0.4], "vigor is worse than random here: "),
        ([0.5, 0.3, 0.5, 0.3], [0.4, 0.4, 0.4, 0.4], "vigor cannot be told from random here: "),
    ],
)
def test_the_verdict_is_that_of_the_differences(after: list[float], control: list[float], said: str) -> None:
    before = [0.4, 0.4, 0.4, 0.4]
    assert verdict(outcome("vigor", before, after), outcome("random", before, control)).startswith(said)


def test_the_verdict_tells_both_changes_with_their_intervals() -> None:
    same = [0.4, 0.4]
    said = verdict(outcome("vigor", same, [0.6, 0.6]), outcome("random", same, same))
    assert "changed by +20 [+20, +20] points under vigor and by +0 [+0, +0] under random (95 %" in said


def test_the_gain_of_a_run_is_paired_by_question() -> None:
    trained = outcome("vigor", [0.1, 0.9], [0.3, 1.0])
    assert trained.gains() == pytest.approx([0.2, 0.1])
    assert accuracy_table([trained]).columns[1].header == "rewarded by vigor"
