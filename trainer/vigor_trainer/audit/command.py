"""`vigor-trainer audit`: tells whether intrinsic rewards will help a model at a task, without training it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vigor_client import PublishResult, VigorClient
from vigor_trainer.audit.arguments import AuditArguments
from vigor_trainer.audit.metrics import AuditMetrics, audit_metrics
from vigor_trainer.audit.page import write_page
from vigor_trainer.audit.ready_completions import read_ready
from vigor_trainer.audit.scoring import AuditedCompletion, audited
from vigor_trainer.audit.served_model import hold_model
from vigor_trainer.audit.verdict import Verdict, verdict_of
from vigor_trainer.connection import connected
from vigor_trainer.errors import InvalidTaskError
from vigor_trainer.evaluation.arguments import parse_flags, settings_of
from vigor_trainer.evaluation.command import read_questions
from vigor_trainer.evaluation.completions import COMPLETIONS_FILE, Question, sample_completions
from vigor_trainer.evaluation.models import load_sampler, load_tokenizer, model_name
from vigor_trainer.monitoring.evaluations import EvaluatedCompletion
from vigor_trainer.monitoring.record_file import RecordFile
from vigor_trainer.monitoring.run_files import output_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUDIT_FILE, PAGE_FILE = "audit.json", "audit.html"
DESCRIPTION = "Measure, without training, whether rewards separate a model's correct completions from its wrong ones."


def main(argv: Sequence[str]) -> None:
    """Audit as the command line says. Raises as ``run``; a wrong command line ends the program with code 2."""
    run(parse_flags(AuditArguments, argv, command="audit", description=DESCRIPTION))


def run(arguments: AuditArguments) -> Verdict:
    """Sample or read completions, score them, and write `completions.jsonl`, `audit.json` and `audit.html`.

    Raises:
        TrainerError: see its tree.
        VigorError: the service cannot be reached, or refuses.
    """
    directory = output_directory(arguments.output, flag="--output")
    with connected(arguments) as client:
        weights = _weights(arguments, client)
        completions = _labelled(_completions(arguments, client), arguments)
        RecordFile(directory / COMPLETIONS_FILE, EvaluatedCompletion).append(*completions)  # kept even if scoring fails
        print(f"scoring {sum(each.decoding == 'sampled' for each in completions)} completions", flush=True)
        scored = audited(completions, client, weights, seed=arguments.seed)
        served = client.model().model
    metrics = audit_metrics(scored)
    verdict = verdict_of(metrics)
    about: dict[str, Any] = {
        "verdict": asdict(verdict),
        "settings": settings_of(arguments),
        "model": served,
        "weight_version": weights.weight_version,
        "weight_digest": weights.weight_digest,
    }
    _write(directory, about, metrics, scored)
    write_page(directory / PAGE_FILE, metrics, verdict, scored, title=f"Audit of {served}")
    print(f"{described(metrics)}\n{verdict.sentence}\nwrote {directory / AUDIT_FILE} and {directory / PAGE_FILE}")
    return verdict


def described(metrics: AuditMetrics) -> str:
    """Return the numbers of the rewards as a table of text."""
    lines = [
        f"{metrics.num_questions} questions, {metrics.num_completions} sampled completions, {metrics.num_mixed} "
        f"questions with correct and wrong ones, {metrics.num_pairs} pairs; 95 % intervals over questions",
        f"accuracy: greedy {metrics.greedy_accuracy or '–'}, mean {metrics.mean_accuracy}, majority "
        f"{metrics.majority_accuracy}, any correct {metrics.best_possible_accuracy}",
        f"{'reward':28} {'AUC':24} {'best of a group':24}",
    ]
    for name, reward in metrics.rewards.items():
        lines.append(f"{name:28} {reward.auc or '–'!s:24} {reward.best_of_accuracy or '–'!s:24}")
    norms = metrics.norms
    lines.append(
        f"log norm against log length: slope {norms.log_slope or '–'}, times √T {norms.scaled_log_slope or '–'}"
    )
    lines.append(f"ties {norms.tied_share or '–'}, duplicates {norms.duplicate_share}, spread {norms.spread or '–'}")
    return "\n".join(lines)


def _weights(arguments: AuditArguments, client: VigorClient) -> PublishResult:
    """Return the weights that score: those of the model if one is named or sampled from, else the served ones."""
    if arguments.model is None and arguments.completions is not None:
        held = client.weights()
        return PublishResult(held.weight_version, held.weight_digest, sent_bytes=0, num_changed_tensors=0)
    return hold_model(client, model_name(arguments.model), publish=arguments.publish)


def _completions(arguments: AuditArguments, client: VigorClient) -> list[EvaluatedCompletion]:
    if arguments.completions is not None:
        return read_ready(Path(arguments.completions), _decoder(arguments.model))
    name = model_name(arguments.model)
    tokenizer = load_tokenizer(name)
    named = cast("str", arguments.dataset)
    questions = [each for each in read_questions(arguments, named, tokenizer) if each.is_labelled]
    if not questions:
        raise _unlabelled(arguments)
    _refuse_overlong(questions, client.model().max_sequence_tokens - arguments.max_completion_length)
    return sample_completions(
        questions,
        load_sampler(arguments, name, tokenizer),
        tokenizer,
        num_samples=arguments.num_generations,
        temperature=arguments.temperature,
    )


def _refuse_overlong(questions: Sequence[Question], max_prompt_tokens: int) -> None:
    for question in questions:
        if len(question.prompt_ids) > max_prompt_tokens:
            raise InvalidTaskError(
                f"question {question.number + 1} has {len(question.prompt_ids):,} tokens, and the service's context "
                f"leaves {max(0, max_prompt_tokens):,} for a prompt: give a smaller --max_completion_length"
            )


def _decoder(model: str | None) -> Callable[[list[int]], str] | None:
    if model is None:
        return None
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _labelled(completions: Sequence[EvaluatedCompletion], arguments: AuditArguments) -> list[EvaluatedCompletion]:
    """Return the completions that are known to be correct or wrong, of at most ``--limit`` questions.

    Raises:
        InvalidTaskError: no sampled completion is among them.
    """
    found = [
        each
        for each in completions
        if each.is_correct is not None and (arguments.limit is None or each.question < arguments.limit)
    ]
    if not any(each.decoding == "sampled" for each in found):
        raise _unlabelled(arguments)
    return found


def _unlabelled(arguments: AuditArguments) -> InvalidTaskError:
    source = arguments.dataset or arguments.completions
    return InvalidTaskError(f"{source}: no question has an answer, so it is not known which completions are correct")


def _write(directory: Path, about: dict[str, Any], metrics: AuditMetrics, scored: Sequence[AuditedCompletion]) -> None:
    RecordFile(directory / COMPLETIONS_FILE, AuditedCompletion).append(*scored)
    text = json.dumps(about | asdict(metrics), indent=2, ensure_ascii=False)
    (directory / AUDIT_FILE).write_text(text + "\n", encoding="utf-8")
