"""The fast path equals the reference on real weights and real text: SmolLM2-135M-Instruct."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.cases import largest_error
from vigor_service.engine.loading.loading import Policy, load_policy
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import SequenceScore, TokenSequence

TOLERANCE = 1e-5
QUESTIONS_AND_ANSWERS = [
    ("What is 3 + 4?", ["7", "Seven. Seven. Seven. Seven. Seven. Seven."]),
    (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips "
        "did she sell altogether?",
        ["She sold 96 clips."],
    ),
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(None)


@pytest.fixture(scope="module")
def sequences(policy: Policy) -> list[TokenSequence]:
    return [
        TokenSequence(prompt_ids(policy, question), (*policy.tokenizer(answer)["input_ids"], eos(policy)))
        for question, answers in QUESTIONS_AND_ANSWERS
        for answer in answers
    ]


def prompt_ids(policy: Policy, question: str) -> tuple[int, ...]:
    text = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    return tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])


def eos(policy: Policy) -> int:
    assert isinstance(policy.tokenizer.eos_token_id, int)
    return policy.tokenizer.eos_token_id


@pytest.fixture(scope="module")
def expected(policy: Policy, sequences: list[TokenSequence]) -> list[SequenceScore]:
    parameters = measured_parameters(policy.model)
    return [exact_score(policy.model, sequence, parameters) for sequence in sequences]


@pytest.fixture(scope="module")
def fast(policy: Policy) -> FastNorms:
    return FastNorms(policy.model, measured_parameters(policy.model))


def test_norms_equal_the_reference(
    fast: FastNorms, sequences: list[TokenSequence], expected: list[SequenceScore]
) -> None:
    assert not fast.plan.fallback
    assert largest_error(fast.score(sequences), expected) <= TOLERANCE


@pytest.mark.slow  # the test above compares the same norms with each alone, by the reference
def test_a_norm_is_the_same_alone_in_its_group_and_amid_other_requests(
    fast: FastNorms, sequences: list[TokenSequence]
) -> None:
    *group, other = sequences
    alone = [fast.score([sequence])[0] for sequence in group]
    assert largest_error(fast.score(group), alone) <= TOLERANCE
    assert largest_error(fast.score([other, *group[::-1]])[1:], alone[::-1]) <= TOLERANCE


def test_without_the_tied_cross_term_the_norms_are_wrong(
    fast: FastNorms, sequences: list[TokenSequence], expected: list[SequenceScore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "plan", replace(fast.plan, tied_weight_VD=None))
    assert largest_error(fast.score(sequences[:1]), expected[:1]) > 10 * TOLERANCE
