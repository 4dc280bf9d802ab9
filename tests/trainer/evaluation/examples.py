"""Completions of evaluations and audits, as they are recorded."""

from __future__ import annotations

from typing import Any

from vigor_trainer.monitoring.evaluations import EvaluatedCompletion


def evaluated(question: int, index: int = 0, **changes: object) -> EvaluatedCompletion:
    """A sampled completion that is wrong."""
    given: dict[str, Any] = {
        "step": 0,
        "question": question,
        "decoding": "sampled",
        "index": index,
        "prompt": f"What is {question} + 1?",
        "prompt_ids": None,
        "answer": str(question + 1),
        "completion": "I cannot say",
        "completion_ids": [5, 6, 7],
        "finish_reason": "stop",
        "num_tokens": 3,
        "mean_entropy": 0.5,
        "final_answer": None,
        "is_boxed": False,
        "is_correct": False,
    }
    given.update(changes)
    return EvaluatedCompletion(**given)
