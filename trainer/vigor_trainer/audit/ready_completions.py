"""Reads existing completions from a JSONL file, written by `eval`, `audit`, a run, or any other program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from vigor_client import InputError
from vigor_client.cli.jsonl_input import open_input
from vigor_client.schemas.faults import faults_of
from vigor_client.schemas.scoring import FinishReason
from vigor_trainer.data.answers import judge
from vigor_trainer.data.prompts import Prompt, prompt_of
from vigor_trainer.errors import InvalidTaskError
from vigor_trainer.monitoring.evaluations import EvaluatedCompletion

Decode = Callable[[list[int]], str]


class _Row(BaseModel):
    """The fields that are read from a line; other fields are ignored."""

    prompt: object
    prompt_ids: list[int] | None = None
    completion: str | None = None
    completion_ids: list[int] | None = None
    finish_reason: FinishReason = "stop"
    answer: str | int | float | None = None
    is_correct: bool | None = None
    decoding: Literal["greedy", "sampled"] = "sampled"
    step: int = 0


def read_ready(path: Path, decode: Decode | None) -> list[EvaluatedCompletion]:
    """Return the completions in a file; completions with the same prompt and step form one group.

    ``decode`` turns ids into text, for lines that have no ``completion``.

    Raises:
        InvalidTaskError: the file cannot be read, or a line is not understood; names it.
    """
    numbers: dict[str, int] = {}
    counts: dict[tuple[int, str], int] = {}
    found: list[EvaluatedCompletion] = []
    for place, row in _rows(path):
        prompt = _prompt(row, place)
        question = numbers.setdefault(json.dumps([row.step, prompt]), len(numbers))
        index = counts.get((question, row.decoding), 0)
        counts[question, row.decoding] = index + 1
        found.append(_completion(row, prompt, _text(row, decode, place), question, index))
    return found


def _rows(path: Path) -> Iterator[tuple[str, _Row]]:
    try:
        with open_input(path) as source:
            for number, line in source.lines():
                place = f"{path}:{number}"
                try:
                    yield place, _Row.model_validate_json(line)
                except ValidationError as error:
                    raise InvalidTaskError(f"{place}: {faults_of(error, _Row)[0]}") from error
    except (OSError, InputError) as error:
        raise InvalidTaskError(str(error) if isinstance(error, InputError) else f"{path}: {error.strerror}") from error


def _prompt(row: _Row, place: str) -> Prompt:
    try:
        return prompt_of(row.prompt)
    except ValueError as error:
        raise InvalidTaskError(f"{place}: `prompt` {error}") from error


def _text(row: _Row, decode: Decode | None, place: str) -> str:
    if row.completion is not None:
        return row.completion
    if row.completion_ids is None:
        raise InvalidTaskError(f"{place}: has neither `completion` nor `completion_ids`")
    if decode is None:
        raise InvalidTaskError(
            f"{place}: has `completion_ids` alone: give --model, whose tokenizer turns them into text"
        )
    return decode(row.completion_ids)


def _completion(row: _Row, prompt: Prompt, text: str, question: int, index: int) -> EvaluatedCompletion:
    answer = None if row.answer is None else str(row.answer)
    judged = judge(text, answer)
    return EvaluatedCompletion(
        step=row.step,
        question=question,
        decoding=row.decoding,
        index=index,
        prompt=prompt,
        prompt_ids=row.prompt_ids,
        answer=answer,
        completion=text,
        completion_ids=row.completion_ids,
        finish_reason=row.finish_reason,
        num_tokens=len(row.completion_ids or []),
        mean_entropy=None,
        final_answer=judged.final,
        is_boxed=judged.is_boxed,
        is_correct=row.is_correct if answer is None else judged.is_correct,
    )
