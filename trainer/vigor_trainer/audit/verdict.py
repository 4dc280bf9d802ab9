"""The verdict of an audit in one sentence: whether confidence is aligned with correctness beyond chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vigor_trainer.audit.metrics import AuditMetrics
from vigor_trainer.monitoring.intervals import Estimate

CHANCE = 0.5
MIN_MIXED_QUESTIONS = 10
"""Minimum number of questions with correct and wrong completions: with fewer, bootstrap intervals are too narrow."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of the AUC of `vigor`, as a word and as a sentence.

    ``aligned``: above chance; ``opposed``: below chance; ``chance``: indistinguishable from chance; ``unknown``: too
    few questions have correct and wrong completions.
    """

    kind: Literal["aligned", "opposed", "chance", "unknown"]
    sentence: str


def verdict_of(metrics: AuditMetrics) -> Verdict:
    """Return the verdict. An AUC is beyond chance if its interval excludes 0.5 and few random orders reach it."""
    auc, random = metrics.rewards["vigor"].auc, metrics.random_auc
    if metrics.num_mixed < MIN_MIXED_QUESTIONS or auc is None or random is None:
        return Verdict(
            "unknown",
            f"It cannot be decided here whether confidence is aligned with correctness: {metrics.num_mixed} of "
            f"{metrics.num_questions} questions have both correct and wrong completions, and {MIN_MIXED_QUESTIONS} are "
            "needed. Use more questions, or questions that the model sometimes solves, or more completions of each.",
        )
    seen = (
        f"in {_percent(auc)} of {metrics.num_pairs:,} pairs of a correct and a wrong completion of the same question, "
        f"the correct one has the smaller gradient norm; chance is 50 %, and 95 % of random orders of the same "
        f"completions reach {random.low * 100:.0f} to {random.high * 100:.0f} %."
    )
    if auc.low > CHANCE and auc.value > random.high:
        return Verdict("aligned", f"Confidence is aligned with correctness here, above chance: {seen}")
    if auc.high < CHANCE and auc.value < random.low:
        return Verdict(
            "opposed",
            f"Confidence is opposed to correctness here, below chance: {seen} Training with this reward would "
            "reinforce errors.",
        )
    return Verdict("chance", f"Confidence is not aligned with correctness here beyond chance: {seen}")


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]".replace("%", " %")
