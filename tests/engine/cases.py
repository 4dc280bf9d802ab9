"""Sequences that engine tests score: odd lengths, masks, repeats, nothing at all."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from math import isnan
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.support.tiny_models import VOCAB_SIZE, tiny_model
from vigor_service.engine.model.parameter_selection import measured_parameters
from vigor_service.engine.norms.reference import exact_score
from vigor_service.engine.sequences import SequenceScore, TokenSequence

CPU = torch.device("cpu")
EOS = 257


def random_sequence(
    rng: random.Random, num_prompt: int, num_completion: int, mask: tuple[bool, ...] | None = None
) -> TokenSequence:
    """Return random ids of the tiny vocabulary."""
    ids = [rng.randrange(VOCAB_SIZE) for _ in range(num_prompt + num_completion)]
    return TokenSequence(tuple(ids[:num_prompt]), tuple(ids[num_prompt:]), mask)


def difficult_sequences() -> list[TokenSequence]:
    """Return the sequences that a careless implementation gets wrong."""
    rng = random.Random(0)
    return [
        random_sequence(rng, 5, 9),
        random_sequence(rng, 1, 1),  # shortest there is
        random_sequence(rng, 12, 31),  # longer than the sliding windows
        random_sequence(rng, 3, 6, (True, False, True, True, False, False)),  # masked inside and at the end
        random_sequence(rng, 4, 5, (False,) * 5),  # nothing counts
        random_sequence(rng, 3, 0),  # empty completion
        random_sequence(rng, 20, 2),
        TokenSequence((EOS, 5, 5, 5), (EOS, 5, 5, EOS, 9, 5, 5)),  # repeated tokens, padding id inside the text
        TokenSequence((EOS, 5, 5, 5), (7, 8, 9)),  # the same prompt again
    ]


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Move a model."""
    return model.to(device)  # pyright: ignore[reportArgumentType] - transformers wraps torch's own method


def reference(
    model: nn.Module, sequences: list[TokenSequence], parameters: dict[str, nn.Parameter]
) -> list[SequenceScore]:
    """Score one sequence at a time, by autograd."""
    return [exact_score(model, sequence, parameters) for sequence in sequences]  # pyright: ignore[reportArgumentType] - a PEFT model serves too


@cache
def family_reference(family: str, device: torch.device) -> list[SequenceScore]:
    """Score ``difficult_sequences`` with the tiny model of a family in float32; once for all tests of a process."""
    model = on_device(tiny_model(family), device)
    return reference(model, difficult_sequences(), measured_parameters(model))


def with_each_type(quick: Mapping[torch.dtype, Collection[str]], names: Iterable[str]) -> list[Any]:
    """Return parameters of a test: every name with every type; slow are those that are not in the type's quick ones."""
    return [
        pytest.param(name, dtype, id=f"{name}-{dtype}", marks=[] if name in quick[dtype] else pytest.mark.slow)
        for dtype in quick
        for name in names
    ]


def largest_error(scores: list[SequenceScore], expected: list[SequenceScore]) -> float:
    """Return the largest relative difference of the norms; scores of nothing must both be of nothing."""
    assert [score.num_loss_tokens for score in scores] == [score.num_loss_tokens for score in expected]
    pairs = [(score.grad_norm, wanted.grad_norm) for score, wanted in zip(scores, expected, strict=True)]
    errors = [abs(norm / wanted - 1) for norm, wanted in pairs if not isnan(wanted)]
    assert not any(map(isnan, errors))
    return max(errors)
