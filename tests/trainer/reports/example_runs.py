"""Runs as the trainer leaves them, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.trainer.evaluation.examples import evaluated
from tests.trainer.example_records import example_completion, example_record
from vigor_trainer.evaluation.metrics import evaluation_metrics
from vigor_trainer.monitoring.completions import CompletionRecord
from vigor_trainer.monitoring.evaluations import (
    EVALUATION_COMPLETIONS_FILE,
    EvaluatedCompletion,
    EvaluationRecord,
    evaluation_file,
)
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.record_file import RecordFile
from vigor_trainer.monitoring.run_files import RunFiles

WORDS = ("the", "answer", "is", "a", "sum", "of", "both", "numbers", "so", "carry", "one", "and", "write", "digits")


def write_run(
    directory: Path, *, num_steps: int = 6, num_groups: int = 2, size: int = 8, num_words: int = 20, seed: int = 0
) -> Path:
    """A run whose longer completions are more often wrong; a correct one has a smaller norm more often than not."""
    draw, files = random.Random(seed), RunFiles(directory)
    for step in range(num_steps):
        completions = [
            completion
            for group in range(num_groups)
            for completion in example_group(draw, step, group, size=size, num_words=num_words)
        ]
        more = {"num_groups": num_groups, "num_completions": len(completions), "mean_entropy": 1 - 0.01 * step}
        files.append(example_record(step, **more), completions)
    return directory


def write_evaluations(
    directory: Path, *shares: Sequence[float], greedy: Sequence[Sequence[bool]] | None = None, **changes: object
) -> Path:
    """Evaluations of a run, four steps apart: the share of ten samples of each question that is right.

    ``greedy``: whether the greedy completion of each question is right, if there are any.
    """
    kept, records = RecordFile(directory / EVALUATION_COMPLETIONS_FILE, EvaluatedCompletion), evaluation_file(directory)
    for number, of_questions in enumerate(shares):
        completions = [
            evaluated(question, index, **{"step": 4 * number, "is_correct": index < 10 * share} | changes)
            for question, share in enumerate(of_questions)
            for index in range(10)
        ]
        completions += [
            evaluated(question, step=4 * number, decoding="greedy", is_correct=is_right)
            for question, is_right in enumerate(greedy[number] if greedy else [])
        ]
        kept.append(*completions)
        metrics = asdict(evaluation_metrics(completions))
        records.append(EvaluationRecord(step=4 * number, seconds=1.0, metrics=metrics))
    return directory


def example_evaluation(step: int, sampled_accuracy: Estimate) -> EvaluationRecord:
    metrics = {"greedy": {"accuracy": None}, "sampled": {"accuracy": asdict(sampled_accuracy)}}
    return EvaluationRecord(step=step, seconds=1.0, metrics=metrics)


def example_group(draw: random.Random, step: int, group: int, *, size: int, num_words: int) -> list[CompletionRecord]:
    drawn = [(draw.randint(num_words // 2, num_words), draw.random()) for _ in range(size)]
    norms = [30 - 8 * luck + length / num_words for length, luck in drawn]
    order = sorted(range(size), key=lambda index: norms[index])
    return [
        example_completion(
            step,
            group=group,
            index=index,
            prompt=f"Question {group} of step {step}?",
            completion=" ".join(draw.choices(WORDS, k=length)),
            completion_ids=draw.choices(range(9), k=length),
            num_tokens=length,
            grad_norm=norms[index] / length**0.5,
            scaled_grad_norm=norms[index],
            rank=float(order.index(index) + 1),
            rewards={"vigor": 1 - 2 * order.index(index) / (size - 1)},
            is_correct=luck + 0.3 * draw.random() > 0.6,
        )
        for index, (length, luck) in enumerate(drawn)
    ]
