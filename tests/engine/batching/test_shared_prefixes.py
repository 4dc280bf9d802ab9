"""Rows of prompts that several sequences have."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.engine.cases import largest_error, random_sequence
from tests.support.tiny_models import FAMILIES, tiny_model
from vigor_service.engine.batching.packing import pack
from vigor_service.engine.batching.shared_prefixes import (
    MIN_TOKENS,
    PromptRows,
    join_rows,
    num_tokens_without,
    shared_prompts,
)
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.fast import FastNorms
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import TokenSequence

PROMPT = tuple(range(MIN_TOKENS))
# Each rule, window and layout; the check at load has a shared prompt, too, and test_model_table loads every family.
QUICK = {"qwen2", "qwen2-tied", "gpt2", "gemma2", "mixtral", "deepseek_v3", "gpt_oss", "falcon-alibi", "mamba"}
OTHER = tuple(range(5, 6 + MIN_TOKENS))


def test_a_prompt_is_shared_by_several_sequences_and_is_not_very_short() -> None:
    short = (1, 2, 3)
    prompts = [PROMPT, short, OTHER, PROMPT, short]
    sequences = [TokenSequence(prompt, (index,)) for index, prompt in enumerate(prompts)]
    assert shared_prompts(sequences) == [PROMPT]


def test_tokens_of_prompts_that_are_shared_do_not_count_for_their_sequences() -> None:
    sequences = [TokenSequence(PROMPT, (1, 2, 3)), TokenSequence(OTHER, (1, 2))]
    assert num_tokens_without({PROMPT}, sequences) == 3 + len(OTHER) + 2


@pytest.mark.parametrize(
    "sequences",
    [
        [TokenSequence(PROMPT, (1, 2, 3))],
        [TokenSequence((7,), (1, 2)), TokenSequence(PROMPT, (1, 2, 3)), TokenSequence(PROMPT, (4, 5))],
        [TokenSequence(PROMPT, (1,)), TokenSequence(OTHER, (1, 2, 3)), TokenSequence((7,), (1, 2))],
        [TokenSequence(PROMPT, (1,)), TokenSequence(PROMPT, (2,))],  # nothing is left to compute
    ],
)
def test_known_rows_are_taken_and_all_others_computed(sequences: list[TokenSequence]) -> None:
    weight = torch.randn(4, 3)
    table = torch.randn(50, 3)
    rows = PromptRows({PROMPT: slice(0, len(PROMPT))}, {id(weight): table[list(PROMPT)] @ weight.T})
    batch = pack(sequences, torch.device("cpu"))
    x = table[batch.input_ids_1N]
    computed: list[int] = []

    def operation(rows_UI: Tensor) -> Tensor:
        computed.append(rows_UI.flatten(0, -2).shape[0])
        return rows_UI @ weight.T

    known = rows.in_batch(sequences, batch)
    output, pieces = known.complete(operation, x, weight)
    torch.testing.assert_close(output, x @ weight.T)
    assert torch.equal(join_rows(*pieces, shape=output.shape), output)
    num_known = sum(len(PROMPT) for sequence in sequences if sequence.prompt_ids == PROMPT)
    assert computed == [batch.num_tokens - num_known]


def test_a_weight_without_known_rows_is_computed_whole() -> None:
    sequences = [TokenSequence(PROMPT, (1, 2, 3))]
    batch = pack(sequences, torch.device("cpu"))
    known = PromptRows({PROMPT: slice(0, len(PROMPT))}, {}).in_batch(sequences, batch)
    x = torch.randn(1, batch.num_tokens, 3)
    output, pieces = known.complete(lambda rows: 2 * rows, x, torch.randn(3, 3))
    assert torch.equal(output, 2 * x)
    assert pieces == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_norms_of_one_token_completions_equal_the_reference(family: str) -> None:
    model, sequences = tiny_model(family), [TokenSequence(PROMPT, (index,)) for index in range(12)]
    parameters = measured_parameters(model)
    expected = [exact_score(model, sequence, parameters) for sequence in sequences]
    assert largest_error(FastNorms(model, parameters).score(sequences), expected) <= 1e-5


@pytest.mark.parametrize(
    "family", [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
)
def test_norms_of_a_group_equal_the_reference(family: str) -> None:
    rng = random.Random(1)
    prompt, *others = (random_sequence(rng, MIN_TOKENS + 3, length) for length in (0, 1, 7, 30))
    sequences = [TokenSequence(prompt.prompt_ids, other.completion_ids) for other in others]
    model = tiny_model(family)
    parameters = measured_parameters(model)
    expected = [exact_score(model, sequence, parameters) for sequence in sequences]
    assert largest_error(FastNorms(model, parameters).score(sequences), expected) <= 1e-5
