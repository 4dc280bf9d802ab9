"""The first held-out questions with a run's answers before and after training, verbatim."""

from __future__ import annotations

from typing import TypedDict

from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.reports.listing import prompt_text
from vigor_trainer.reports.runs import Run


class ShownCompletion(TypedDict):
    """A completion with its text. ``correct`` is None if the question has no label."""

    step: int
    text: str
    tokens: int
    truncated: bool
    correct: bool | None


class Example(TypedDict):
    """A question, and its first completion in the first and in the last evaluation."""

    prompt: str
    completions: list[ShownCompletion]


def held_out_examples(run: Run) -> list[Example]:
    """Return the first held-out questions; empty if the run has not recorded completions of them."""
    if run.held_out is None:
        return []
    steps = dict.fromkeys([run.held_out.first_step, run.held_out.last_step])  # one before the second evaluation
    first = run.held_out.examples[run.held_out.first_step]
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
