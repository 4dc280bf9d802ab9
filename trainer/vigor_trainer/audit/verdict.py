"""One plain sentence: is confidence aligned with correctness here, and is that above chance?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vigor_trainer.audit.metrics import AuditMetrics
from vigor_trainer.monitoring.intervals import Estimate

CHANCE = 0.5
MIN_MIXED_QUESTIONS = 10
"""With correct and wrong completions. Of fewer, a bootstrap over questions makes intervals that are too narrow."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the AUC of `vigor` says, as a word and as a sentence.

    ``aligned``: above chance; ``opposed``: below it; ``chance``: not to be told from it; ``unknown``: too few questions
    have correct and wrong completions.
    """

    kind: Literal["aligned", "opposed", "chance", "unknown"]
    sentence: str


def verdict_of(metrics: AuditMetrics) -> Verdict:
    """Return the verdict. Beyond chance is what lies apart from 0.5 and from the control `random`, by intervals."""
    vigor, random = metrics.rewards["vigor"], metrics.rewards["random"]
    auc, difference = vigor.auc, vigor.auc_minus_random
    if metrics.num_mixed < MIN_MIXED_QUESTIONS or auc is None or difference is None or random.auc is None:
        return Verdict(
            "unknown",
            f"Whether confidence is aligned with correctness cannot be said here: {metrics.num_mixed} of "
            f"{metrics.num_questions} questions have both correct and wrong completions, and {MIN_MIXED_QUESTIONS} are "
            "needed. Take more questions, or some that the model solves sometimes, or sample more completions of each.",
        )
    pairs = (
        f"of a correct and a wrong completion of the same question, the correct one has the smaller gradient norm in "
        f"{_percent(auc)} of {metrics.num_pairs:,} pairs"
    )
    control = f"random order {_percent(random.auc)}"
    if auc.low > CHANCE and difference.low > 0:
        return Verdict(
            "aligned", f"Confidence is aligned with correctness here, above chance: {pairs}; chance is 50 %, {control}."
        )
    if auc.high < CHANCE and difference.high < 0:
        return Verdict(
            "opposed",
            f"Confidence is opposed to correctness here, below chance: {pairs}; chance is 50 %, {control}. Training "
            "on it would teach errors.",
        )
    reason = "the interval includes it" if auc.low <= CHANCE <= auc.high else "the random order is as far from it"
    return Verdict(
        "chance",
        f"Confidence is not aligned with correctness here beyond chance: {pairs}; chance is 50 % and {reason} "
        f"({control}).",
    )


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]".replace("%", " %")
