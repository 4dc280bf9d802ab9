"""Attention over packed sequences, through transformers' attention interface.

Each sequence attends causally to itself alone. Registered under a name of its own, so that the model's own
attention stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from vigor_service.engine import varlen_attention
from vigor_service.engine.packing import PackedBatch

IMPLEMENTATION = "vigor_packed"
# What models pass along that changes nothing here: positions are in q and k already, there is no cache.
_WITHOUT_EFFECT = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}

_packed_batch: ContextVar[PackedBatch] = ContextVar("packed_batch")


class UnsupportedAttentionError(Exception):
    """The model asks for something that packed attention does not do."""


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend within the sequences of the batch it is given, and restore its own attention afterwards."""
    own_implementation = model.config._attn_implementation or "eager"
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(own_implementation)


@contextmanager
def attending_within(batch: PackedBatch) -> Iterator[None]:
    """On this thread, the model is given this batch."""
    token = _packed_batch.set(batch)
    try:
        yield
    finally:
        _packed_batch.reset(token)


def _attend_packed(
    module: nn.Module,
    query_1HNd: Tensor,
    key_1hNd: Tensor,
    value_1hNd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Equal causal attention run sequence by sequence; returns (1, N, H, d)."""
    _refuse_unknown(module, attention_mask, dropout, others)
    lengths = [rows.stop - rows.start for rows in _packed_batch.get().token_slices]
    if softcap is None and varlen_attention.serves(query_1HNd, value_1hNd):
        output_1NHd = varlen_attention.attend(query_1HNd, key_1hNd, value_1hNd, lengths, scaling, sliding_window)
        return output_1NHd, None
    if len(lengths) == 1:
        return _attend_one(query_1HNd, key_1hNd, value_1hNd, scaling, sliding_window, softcap).transpose(1, 2), None
    # split, not slices: the backward pass of a slice fills a tensor of all N tokens with zeros
    pieces = [tensor.split(lengths, dim=2) for tensor in (query_1HNd, key_1hNd, value_1hNd)]
    outputs = [_attend_one(q, k, v, scaling, sliding_window, softcap) for q, k, v in zip(*pieces, strict=True)]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _refuse_unknown(
    module: nn.Module, attention_mask: Tensor | None, dropout: float, others: dict[str, object]
) -> None:
    unknown = [name for name, value in others.items() if value is not None and name not in _WITHOUT_EFFECT]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if dropout:
        unknown.append("dropout")
    if not getattr(module, "is_causal", True):
        unknown.append("is_causal=False")
    if unknown:
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for {', '.join(unknown)}")


def _attend_one(
    query_1HTd: Tensor,
    key_1hTd: Tensor,
    value_1hTd: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    num_tokens = query_1HTd.shape[2]
    windowed = sliding_window is not None and num_tokens > sliding_window
    if softcap is None and not windowed:
        return scaled_dot_product_attention(
            query_1HTd, key_1hTd, value_1hTd, is_causal=True, scale=scaling, enable_gqa=True
        )
    mask_TT = _causal_mask(num_tokens, sliding_window, query_1HTd.device)
    if softcap is None:
        return scaled_dot_product_attention(
            query_1HTd, key_1hTd, value_1hTd, attn_mask=mask_TT, scale=scaling, enable_gqa=True
        )
    return _softcapped_attention(query_1HTd, key_1hTd, value_1hTd, mask_TT, scaling, softcap)


def _causal_mask(num_tokens: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """True where row t may attend: to itself and, with a window of w, to the w - 1 tokens before it."""
    mask_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    return mask_TT if sliding_window is None else mask_TT.triu(1 - sliding_window)


def _softcapped_attention(
    query_1HTd: Tensor, key_1hTd: Tensor, value_1hTd: Tensor, mask_TT: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    """``softmax(softcap tanh(q kᵀ scaling / softcap)) v``, which no fused kernel of torch offers (Gemma 2)."""
    repeats = query_1HTd.shape[1] // key_1hTd.shape[1]
    key_1HTd, value_1HTd = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key_1hTd, value_1hTd))
    scale = query_1HTd.shape[-1] ** -0.5 if scaling is None else scaling
    logits_1HTT = (query_1HTd @ key_1HTd.transpose(2, 3)) * scale
    logits_1HTT = (softcap * torch.tanh(logits_1HTT / softcap)).masked_fill(~mask_TT, float("-inf"))
    return logits_1HTT.softmax(-1, dtype=torch.float32).to(query_1HTd.dtype) @ value_1HTd


AttentionInterface.register(IMPLEMENTATION, _attend_packed)
