"""The first held-out questions with what a run answered before and after, word for word."""

from __future__ import annotations

from typing import TypedDict

from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.reports.listing import prompt_text
from vigor_trainer.reports.runs import Run


class ShownCompletion(TypedDict):
    """A completion with its text. ``correct`` is None where the question has no label."""

    step: int
    text: str
    tokens: int
    truncated: bool
    correct: bool | None


class Example(TypedDict):
    """A question, and its first completion of the first and of the last evaluation."""

    prompt: str
    completions: list[ShownCompletion]


def held_out_examples(run: Run) -> list[Example]:
    """Return the first held-out questions; none where a run has not recorded completions of them."""
    if run.held_out is None:
        return []
    steps = dict.fromkeys([run.held_out.steps[0], run.held_out.steps[-1]])  # one, while there is no later evaluation
    first = run.held_out.examples[run.held_out.steps[0]]
    return [
        {
            "prompt": prompt_text(example.prompt),
            "completions": [
                _shown(found) for step in steps if (found := run.held_out.examples[step].get(question)) is not None
            ],
        }
        for question, example in sorted(first.items())
    ]


def _shown(completion: EvaluatedCompletion) -> ShownCompletion:
    return {
        "step": completion.step,
        "text": completion.completion,
        "tokens": completion.num_tokens,
        "truncated": completion.finish_reason == "length",
        "correct": completion.is_correct,
    }
