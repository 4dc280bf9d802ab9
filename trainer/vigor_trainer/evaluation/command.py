"""`vigor-trainer eval`: measures how good a model is at a task, and keeps every completion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from time import perf_counter
from typing import TYPE_CHECKING

from vigor_trainer.data.tasks import read_task
from vigor_trainer.evaluation.arguments import EvalArguments, SamplingArguments, parse_flags, settings_of
from vigor_trainer.evaluation.completions import (
    COMPLETIONS_FILE,
    Question,
    questions_of,
    sample_completions,
)
from vigor_trainer.evaluation.metrics import DecodingMetrics, EvaluationMetrics, evaluation_metrics
from vigor_trainer.evaluation.models import load_sampler, load_tokenizer, model_name
from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.monitoring.intervals import Estimate
from vigor_trainer.monitoring.record_file import RecordFile
from vigor_trainer.monitoring.run_files import output_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS_FILE = "eval.json"
DESCRIPTION = "Evaluate a model on a task: greedy accuracy, avg@k and pass@k, length, repetition and entropy."


def main(argv: Sequence[str]) -> None:
    """Evaluate as the command line says. Raises as ``run``; a wrong command line ends the program with code 2."""
    run(parse_flags(EvalArguments, argv, command="eval", description=DESCRIPTION))


def run(arguments: EvalArguments) -> EvaluationMetrics:
    """Sample, count, and write `completions.jsonl` and `eval.json` to the output directory.

    Raises:
        TrainerError: see its tree.
    """
    directory, name = output_directory(arguments.output, flag="--output"), model_name(arguments.model)
    tokenizer = load_tokenizer(name)
    questions = read_questions(arguments, arguments.dataset, tokenizer)
    started = perf_counter()
    completions = sample_completions(
        questions,
        load_sampler(arguments, name, tokenizer),
        tokenizer,
        num_samples=arguments.num_samples,
        temperature=arguments.temperature,
    )
    metrics = evaluation_metrics(completions)
    RecordFile(directory / COMPLETIONS_FILE, EvaluatedCompletion).append(*completions)
    written = {"settings": settings_of(arguments) | {"model": name}, "seconds": perf_counter() - started}
    (directory / METRICS_FILE).write_text(json.dumps(written | asdict(metrics), indent=2) + "\n", encoding="utf-8")
    print(described(metrics))
    print(f"wrote {directory / METRICS_FILE} and {directory / COMPLETIONS_FILE}")
    return metrics


def read_questions(arguments: SamplingArguments, dataset: str, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """Return the questions of a task, at most ``--limit``. Raises InvalidTaskError if the task is not understood."""
    source = arguments.source(dataset, split=arguments.dataset_split, seed=arguments.seed)
    has_chat_template = getattr(tokenizer, "chat_template", None) is not None
    examples = read_task(source, has_chat_template=has_chat_template)[: arguments.limit]
    return questions_of([(example.prompt, example.answer, example.tests) for example in examples], tokenizer)


def described(metrics: EvaluationMetrics) -> str:
    """Return the metrics as lines of text."""
    lines = [f"{metrics.num_questions} questions, {metrics.num_labelled} with an answer; 95 % intervals over questions"]
    lines += _lines("greedy", metrics.greedy)
    lines += _lines("sampled", metrics.sampled) if metrics.sampled else []
    lines += [_line(f"pass@{k}", estimate) for k, estimate in metrics.pass_at_k.items()]
    return "\n".join(lines)


def _lines(decoding: str, metrics: DecodingMetrics) -> list[str]:
    return [
        _line(f"{decoding} {field.name.replace('_', ' ')}", getattr(metrics, field.name)) for field in fields(metrics)
    ]


def _line(name: str, estimate: Estimate | None) -> str:
    return f"{name:32} {estimate or '–'}"
