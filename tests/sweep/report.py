"""What the sweep prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.sweep.check import EXACT, GOOD, NEAR_TIE, Outcome


def line(outcome: Outcome) -> str:
    """Return a family's line."""
    error = "" if outcome.error is None else f"{outcome.error:.0e}"
    tie = "(a choice is a near tie)" if (outcome.closest_choice or 1) <= NEAR_TIE else ""
    return f"{outcome.verdict:12}  {error:6}  {outcome.family:40}  {outcome.detail} {tie}".rstrip()


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return how many families came to what, and how far the exact ones are off."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    errors = sorted(outcome.error for outcome in outcomes if outcome.verdict in EXACT and outcome.error is not None)
    spread = (
        f"; exact ones are off by {errors[len(errors) // 2]:.0e} (median), {errors[-1]:.0e} (most)" if errors else ""
    )
    return (
        f"{len(outcomes)} families: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        + spread
    )


def failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return what must not be."""
    return [outcome for outcome in outcomes if outcome.verdict not in GOOD]
