"""A run's completions of held-out questions over its evaluations: accuracy, its change, truncation, examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vigor_trainer.monitoring.evaluations import (
    EVALUATION_COMPLETIONS_FILE,
    Decoding,
    EvaluatedCompletion,
    read_evaluated,
)
from vigor_trainer.monitoring.intervals import Estimate, mean, ratio

NUM_EXAMPLES = 3

Share = tuple[int, int]
"""Counts for one question: completions with a property, and completions for which it is known."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The completions of the held-out questions by one decoding.

    All fields are indexed by step (the number of optimizer steps taken), then by the question's number. ``examples``
    are the first completions of the first questions, not a selection.
    """

    decoding: Decoding
    prompts: Mapping[int, str | list[dict[str, object]]]
    correct: Mapping[int, Mapping[int, Share]]
    truncated: Mapping[int, Mapping[int, Share]]
    examples: Mapping[int, Mapping[int, EvaluatedCompletion]]

    @property
    def steps(self) -> list[int]:
        return sorted(self.correct)

    @property
    def first_step(self) -> int:
        """Step of the first evaluation."""
        return min(self.correct)

    @property
    def last_step(self) -> int:
        """Step of the last evaluation, which is the first one if there is no other."""
        return max(self.correct)

    @property
    def num_samples(self) -> int:
        """Number of completions of each question in one evaluation."""
        return max(number for _, number in self.truncated[self.first_step].values())

    def accuracy(self, step: int) -> Estimate | None:
        """Return the share of correct completions, over questions with a label; None without labels."""
        return _ratio(self.correct[step].values())

    def truncated_share(self, step: int) -> Estimate | None:
        """Return the share of completions that were cut off at the maximum length."""
        return _ratio(self.truncated[step].values())

    def gains(self) -> dict[int, float]:
        """Return the change of accuracy from the first to the last step, for each question with a label."""
        before, after = self.correct[self.first_step], self.correct[self.last_step]
        return {
            question: after[question][0] / after[question][1] - right / judged
            for question, (right, judged) in before.items()
            if judged and after.get(question, (0, 0))[1]
        }

    def change(self) -> Estimate | None:
        """Return the change of accuracy, paired by question; None before a second evaluation and without labels."""
        return mean(list(self.gains().values())) if len(self.steps) > 1 else None


def read_held_out(directory: Path, steps: Collection[int]) -> dict[Decoding, HeldOut]:
    """Return the recorded completions of the evaluations at these steps, by decoding.

    Raises:
        ValueError: a line is not a completion; names it.
    """
    found: dict[Decoding, _Counts] = {"sampled": _Counts(), "greedy": _Counts()}
    for completion in read_evaluated(directory / EVALUATION_COMPLETIONS_FILE):
        if completion.step in steps:  # others belong to an evaluation that is not complete
            found[completion.decoding].add(completion)
    return {
        decoding: HeldOut(decoding, counts.prompts, counts.correct, counts.truncated, counts.examples)
        for decoding, counts in found.items()
        if counts.prompts
    }


def lead(first: HeldOut, second: HeldOut) -> Estimate | None:
    """Return the change of accuracy in the first run minus that in the second, paired by question.

    None if the two were not both evaluated twice on the same questions with labels.
    """
    mine, others = first.gains(), second.gains()
    if first.prompts != second.prompts or not mine or mine.keys() != others.keys():
        return None
    if len(first.steps) < 2 or len(second.steps) < 2:
        return None
    return mean([gain - others[question] for question, gain in mine.items()])


class _Counts:
    """Accumulates counts of the completions of one decoding, without keeping their texts."""

    def __init__(self) -> None:
        self.prompts: dict[int, str | list[dict[str, object]]] = {}
        self.correct: defaultdict[int, dict[int, Share]] = defaultdict(dict)
        self.truncated: defaultdict[int, dict[int, Share]] = defaultdict(dict)
        self.examples: defaultdict[int, dict[int, EvaluatedCompletion]] = defaultdict(dict)

    def add(self, completion: EvaluatedCompletion) -> None:
        step, question = completion.step, completion.question
        self.prompts.setdefault(question, completion.prompt)
        _count(self.correct[step], question, completion.is_correct)
        _count(self.truncated[step], question, completion.finish_reason == "length")
        if question < NUM_EXAMPLES and completion.index == 0:
            self.examples[step][question] = completion


def _count(shares: dict[int, Share], question: int, has_it: bool | None) -> None:
    having, known = shares.get(question, (0, 0))
    shares[question] = (having + (has_it or False), known + (has_it is not None))


def _ratio(shares: Collection[Share]) -> Estimate | None:
    return ratio([having for having, _ in shares], [known for _, known in shares])
