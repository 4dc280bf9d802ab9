"""Completions of an evaluation are judged as those of training: by an answer, or by a program's tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support.tiny_models import tiny_tokenizer
from vigor_trainer.data.programs import program_tests
from vigor_trainer.errors import InvalidTaskError
from vigor_trainer.evaluation.completions import questions_of, sample_completions
from vigor_trainer.evaluation.sampling import SampledTokens

TOKENIZER = tiny_tokenizer()
RIGHT = "```python\ndef double(x):\n    return 2 * x\n```"
WRONG = "```python\ndef double(x):\n    return x\n```"


class PlannedSampler:
    """The greedy completion of each prompt is right, the sampled one wrong."""

    def __init__(self, right: Sequence[str], wrong: Sequence[str]) -> None:
        self._texts = {True: right, False: wrong}

    def sample(
        self, prompts: Sequence[list[int]], *, num_samples: int, temperature: float
    ) -> list[list[SampledTokens]]:
        assert num_samples == 1
        texts = self._texts[temperature == 0]
        assert len(texts) == len(prompts)
        return [[SampledTokens(list(TOKENIZER(text)["input_ids"]), "stop", 0.5)] for text in texts]


def test_each_completion_is_judged_by_the_tests_or_the_answer_of_its_question() -> None:
    tests = program_tests(["assert double(3) == 6"])
    questions = questions_of([("Double.", None, tests), ("2 + 3", "5", None), ("Why?", None, None)], TOKENIZER)
    assert [question.is_labelled for question in questions] == [True, True, False]
    sampler = PlannedSampler([RIGHT, "It is 5", "So."], [WRONG, "It is 6", "So."])
    found = sample_completions(questions, sampler, TOKENIZER, num_samples=1, temperature=1.0)
    assert [(each.decoding, each.is_correct) for each in found] == [
        *[("greedy", True), ("greedy", True), ("greedy", None)],
        *[("sampled", False), ("sampled", False), ("sampled", None)],
    ]
    assert [each.tests for each in found[:3]] == [tests, None, None]
    assert found[0].completion == RIGHT


def test_a_prompt_without_a_token_is_named() -> None:
    with pytest.raises(InvalidTaskError, match="question 2: the prompt has no token"):
        questions_of([("a", None, None), ("", None, None)], TOKENIZER)
