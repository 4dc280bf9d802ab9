"""How a sampled completion ended, by the rule of TRL."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vigor_client.integrations.trl.completions import end_token_ids, finish_reason

TOKENIZER = SimpleNamespace(eos_token_id=1, pad_token_id=0)


@pytest.mark.parametrize(
    ("trainer", "tokenizer", "ends"),
    [
        (SimpleNamespace(eos_token_ids=[1, 2]), TOKENIZER, {0, 1, 2}),
        (None, TOKENIZER, {0, 1}),
        (None, SimpleNamespace(eos_token_id=1, pad_token_id=None), {1}),
        (None, SimpleNamespace(tokenizer=TOKENIZER), {0, 1}),
    ],
    ids=["the trainer's", "the tokenizer's", "without padding", "of a processor"],
)
def test_every_end_of_the_trainer_and_padding_end_a_completion(
    trainer: object, tokenizer: object, ends: set[int]
) -> None:
    assert end_token_ids(trainer, tokenizer) == ends


def test_a_completion_without_tokens_was_cut_off() -> None:
    assert [finish_reason(ids, {0, 1}) for ids in ([], [5], [5, 1], [5, 0])] == ["length", "length", "stop", "stop"]
