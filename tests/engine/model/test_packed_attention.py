"""Packed attention equals a plain softmax within each sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import tiny_model
from vigor_service.engine.batching.packing import pack
from vigor_service.engine.model.attention_span import Span, UnsupportedAttentionError
from vigor_service.engine.model.implementations import running_under
from vigor_service.engine.model.packed_attention import IMPLEMENTATION, _attend_packed, attending_within
from vigor_service.engine.sequences import TokenSequence

SEQUENCES = [TokenSequence(tuple(range(5)), (1, 2)), TokenSequence((1,), (2,)), TokenSequence((1, 2), tuple(range(12)))]


def naive_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """One sequence, (H, T, d) each, head by head and row by row."""
    output = torch.empty_like(query)
    repeats = query.shape[0] // key.shape[0]
    for head in range(query.shape[0]):
        for row in range(query.shape[1]):
            first = 0 if window is None else max(0, row - window + 1)
            logits = key[head // repeats, first : row + 1] @ query[head, row] * scaling
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            output[head, row] = logits.softmax(0) @ value[head // repeats, first : row + 1]
    return output


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_each_sequence_attends_to_its_own_past_alone(window: int | None, softcap: float | None) -> None:
    batch = pack(SEQUENCES, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, batch.num_tokens, 8, generator=generator) for heads in (4, 2, 2))
    model = tiny_model()
    with attending_within(batch):
        span = Span(window=window)
        output, _ = _attend_packed(model, query, key, value, span, scaling=0.3, sliding_window=window, softcap=softcap)
    for rows in batch.token_slices:
        expected = naive_attention(
            query[0, :, rows], key[0, :, rows], value[0, :, rows], scaling=0.3, window=window, softcap=softcap
        )
        torch.testing.assert_close(output[0, rows], expected.transpose(0, 1))


@pytest.mark.parametrize("unknown", [{"sinks": torch.ones(4)}, {"position_bias": torch.ones(4)}, {"dropout": 0.1}])
def test_what_packed_attention_does_not_do_is_refused_by_name(unknown: dict[str, object]) -> None:
    model, batch = tiny_model(), pack(SEQUENCES, torch.device("cpu"))
    query = torch.ones(1, 4, batch.num_tokens, 8)
    with attending_within(batch), pytest.raises(UnsupportedAttentionError, match=next(iter(unknown))):
        _attend_packed(model, query, query, query, None, **unknown)  # pyright: ignore[reportArgumentType] - on purpose


def test_the_models_own_attention_comes_back_even_after_an_error() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError, match="on purpose"), running_under(IMPLEMENTATION, "attn", model):
        raise RuntimeError("on purpose")
    assert model.config._attn_implementation == before
