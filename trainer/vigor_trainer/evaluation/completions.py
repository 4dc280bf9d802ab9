"""Questions, and a model's completions of them, judged as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vigor_client.integrations.trl.prompts import tokenize_prompts
from vigor_trainer.building import building
from vigor_trainer.data.answers import Judged
from vigor_trainer.data.programs import judge_all
from vigor_trainer.data.prompts import Prompt
from vigor_trainer.errors import InvalidTaskError
from vigor_trainer.evaluation.sampling import SampledTokens, Sampler
from vigor_trainer.monitoring.evaluations import Decoding, EvaluatedCompletion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETIONS_FILE = "completions.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt, as text or messages and as ids, and its answer or tests if it has any.

    ``number`` is its place in the task. ``tests`` are JSON of ``data.programs.program_tests``.
    """

    number: int
    prompt: Prompt
    prompt_ids: list[int]
    answer: str | None
    tests: str | None = None

    @property
    def is_labelled(self) -> bool:
        return self.answer is not None or self.tests is not None


def questions_of(
    prompts: Sequence[tuple[Prompt, str | None, str | None]],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> list[Question]:
    """Return prompts, answers and tests as questions, tokenized as TRL tokenizes prompts.

    Raises:
        InvalidTaskError: the chat template refuses a prompt, or a prompt has no tokens; names the question.
    """
    return [
        Question(number, prompt, _prompt_ids(prompt, tokenizer, template_kwargs, number), answer, tests)
        for number, (prompt, answer, tests) in enumerate(prompts)
    ]


def sample_completions(
    questions: Sequence[Question],
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_samples: int,
    temperature: float,
    step: int = 0,
) -> list[EvaluatedCompletion]:
    """Return the greedy completion and ``num_samples`` sampled ones of each question, judged as in training."""
    prompts = [question.prompt_ids for question in questions]
    greedy = sampler.sample(prompts, num_samples=1, temperature=0.0)
    sampled = sampler.sample(prompts, num_samples=num_samples, temperature=temperature) if num_samples else []
    decoded: list[tuple[Decoding, list[list[SampledTokens]]]] = [("greedy", greedy), ("sampled", sampled)]
    drawn: list[tuple[Question, Decoding, int, SampledTokens]] = [
        (question, decoding, index, tokens)
        for decoding, samples in decoded
        for question, of_question in zip(questions, samples, strict=bool(samples))
        for index, tokens in enumerate(of_question)
    ]
    texts = [_text(tokens, tokenizer) for *_, tokens in drawn]
    labels = [(question.answer, question.tests) for question, *_ in drawn]
    judged = judge_all(texts, [answer for answer, _ in labels], [tests for _, tests in labels])
    return [
        _completion(question, decoding, index, tokens, text, verdict, step)
        for (question, decoding, index, tokens), text, verdict in zip(drawn, texts, judged, strict=True)
    ]


def _prompt_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any], number: int
) -> list[int]:
    with building(f"question {number + 1}: the tokenizer's chat template refuses the prompt", kind=InvalidTaskError):
        (ids,) = tokenize_prompts(tokenizer, [prompt], template_kwargs)
    if not ids:
        raise InvalidTaskError(f"question {number + 1}: the prompt has no token")
    return ids


def _completion(
    question: Question,
    decoding: Decoding,
    index: int,
    tokens: SampledTokens,
    text: str,
    judged: Judged,
    step: int,
) -> EvaluatedCompletion:
    return EvaluatedCompletion(
        step=step,
        question=question.number,
        decoding=decoding,
        index=index,
        prompt=question.prompt,
        prompt_ids=question.prompt_ids,
        answer=question.answer,
        completion=text,
        completion_ids=tokens.ids,
        finish_reason=tokens.finish_reason,
        num_tokens=len(tokens.ids),
        mean_entropy=tokens.mean_entropy,
        final_answer=judged.final,
        is_boxed=judged.is_boxed,
        is_correct=judged.is_correct,
        tests=question.tests,
    )


def _text(tokens: SampledTokens, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(tokens.ids, skip_special_tokens=True))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
